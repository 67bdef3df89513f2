"""raidd: RAID for DICOM images. The tree, from the bytes up to the operator:

config, errors, api   frozen settings; the error tree; the messages on the socket
codec                 geometry, erasure code, shard and manifest bytes: pure, no I/O, no clock
dicom                 bytes to identity; the only place that parses DICOM
array                 members, labels, roster, placement, the store, the catalog, the journal
health                noticing: the probe of every member
repair                planning and re-creating lost shards
inbox                 watching, taking in and taking away dropped files
daemon                the object graph, threads, the control socket, metrics, work without the daemon
cli                   raidctl
recover               the stand-alone program copied to every member
"""

__version__ = "0.1.0"
