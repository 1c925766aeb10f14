#!/bin/sh
# embed_process_vl.sh IN OUT [--truncate]: embed_process.sh for vision-language checkpoints, whose config.json locates the embedding
exec axzoo embed-process "$@"
