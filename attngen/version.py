"""The version of the generator, as headers and caches record it."""

VERSION = "0.1.0"
