#!/bin/sh
# embed_process_vl.sh IN OUT [--truncate]: embed_process.sh for vision-language checkpoints, whose config.json says where the table is
exec axzoo embed-process "$@"
