#!/bin/sh
# embed_process.sh IN OUT [--truncate]: write the embedding of checkpoint IN to OUT/model.embed_tokens.weight.{npy,float32.bin,bfloat16.bin}
exec axzoo embed-process "$@"
