"""The files of data sets: where they are looked for, checksums, downloads."""
