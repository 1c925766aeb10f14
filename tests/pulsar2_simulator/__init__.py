"""A simulator of the vendor's compiler, for tests. It writes no programs that an NPU could run.

It has the documented command lines and logs of llm_build and llm_build2, and writes files in the documented container,
with weights in the documented table. It shares no code with axzoo, so that axzoo's reader and this writer check each
other. Nothing in it comes from the vendor's tool, only from descriptions of what it does.
"""
