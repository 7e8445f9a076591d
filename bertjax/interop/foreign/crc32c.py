"""CRC-32C (Castagnoli, RFC 3720 appendix B.4) of large arrays with numpy, and its mask in TensorFlow's files.

A CRC is linear over GF(2): crc(A + B) is crc(A) carried over len(B) zero bytes, xor crc(B) of a start at zero. So many
equal pieces are summed side by side, two bytes of each at a time, and then joined in pairs.
"""

from functools import cache

import numpy as np

_POLYNOMIAL = 0x82F63B78  # reversed
_LANES = 1 << 14
_SMALL = 4096  # below this, lanes cost more than they save


@cache
def _table() -> np.ndarray:
    """uint32 [256]: the CRC register after one byte."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table


@cache
def _pair_table() -> np.ndarray:
    """uint32 [65536]: the CRC register after two bytes."""
    table = np.tile(_table(), 256) ^ np.repeat(np.arange(256, dtype=np.uint32), 256)
    return _table()[table & 0xFF] ^ (table >> 8)


def crc32c(data: bytes | memoryview | np.ndarray) -> int:
    """The checksum of bytes."""
    octets = np.frombuffer(data, np.uint8)
    register = 0xFFFFFFFF
    if len(octets) >= _SMALL:
        lanes = min(_LANES, 1 << (len(octets).bit_length() // 2))
        length = len(octets) // lanes // 2 * 2
        register = _carry(np.array([register], np.uint32), _zeros(length * lanes))[0]
        register ^= _joined(octets[: length * lanes].reshape(lanes, length))
        octets = octets[length * lanes :]
    table = _table().tolist()
    register = int(register)
    for octet in octets.tolist():
        register = table[(register ^ octet) & 0xFF] ^ (register >> 8)
    return register ^ 0xFFFFFFFF


def masked(checksum: int) -> int:
    """The checksum as LevelDB and TensorFlow store it, so that a CRC of data that holds CRCs stays useful."""
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _joined(pieces: np.ndarray) -> np.uint32:
    """The register, from zero, after all bytes of uint8 [a power of two, an even length]."""
    table, columns = _pair_table(), np.ascontiguousarray(pieces.view("<u2").T)
    registers = np.zeros(len(pieces), np.uint32)
    for column in columns:
        registers ^= column
        registers = table[registers & 0xFFFF] ^ (registers >> 16)
    over = _zeros(pieces.shape[1])
    while len(registers) > 1:
        registers = _carry(registers[::2], over) ^ registers[1::2]
        over = _product(over, over)
    return registers[0]


def _carry(registers: np.ndarray, over: np.ndarray) -> np.ndarray:
    """uint32 [n] times a 32 x 32 matrix over GF(2), given as the images of the bits, uint32 [32]."""
    result = np.zeros_like(registers)
    for bit in range(32):
        result ^= np.where((registers >> np.uint32(bit)) & 1, over[bit], np.uint32(0))
    return result


def _product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The matrix that applies `first`, then `second`."""
    return _carry(first, second)


def _zeros(count: int) -> np.ndarray:
    """The matrix that carries a register over `count` zero bytes."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    power = _table()[bits & 0xFF] ^ (bits >> 8)  # one byte
    result = bits
    while count:
        if count & 1:
            result = _product(result, power)
        power = _product(power, power)
        count >>= 1
    return result
