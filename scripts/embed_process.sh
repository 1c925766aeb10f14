#!/bin/sh
# embed_process.sh IN OUT [--truncate]: the embedding of checkpoint IN as OUT/model.embed_tokens.weight.{npy,float32.bin,bfloat16.bin}
exec axzoo embed-process "$@"
