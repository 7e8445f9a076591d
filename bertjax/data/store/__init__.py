"""Prepared rows on disk: ArrayRecord shards and the manifest that describes and verifies them."""
