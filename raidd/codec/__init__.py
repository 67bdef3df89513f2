"""Bytes of the format, pure: no I/O, no clock, nothing that remembers.

geometry   lengths, offsets, limits; levels and narrow widths
erasure    parity from data, anything from any k
manifest   what a segment says about itself
shard      the 1.0 file: head, checksum table, body; its path
segment    seal a payload into shards; make a lost one again
ids        time-ordered ids
"""
