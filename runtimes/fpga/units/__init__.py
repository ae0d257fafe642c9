"""The hardware library: units with valid/ready streams (``amaranth.lib.stream``) on both sides, and back-pressure."""
