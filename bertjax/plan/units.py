"""Formats of bytes and FLOPs."""

GIB, MIB = 2**30, 2**20


def format_bytes(size: float) -> str:
    unit, name = (GIB, "GiB") if size >= GIB / 4 else (MIB, "MiB") if size >= MIB / 4 else (2**10, "KiB")
    return f"{size / unit:,.2f} {name}"


def format_flops(flops: float) -> str:
    unit, name = (1e12, "TFLOP") if flops >= 1e11 else (1e9, "GFLOP")
    return f"{flops / unit:,.3g} {name}"
