def locked_bundle(w):
    """The index of the lock after the lock job."""
    lock = locked("index.json")(w)
    build = PLAN.build(w)
    force([f"{build.bundle}/manifest.json"], COMPARISON.of_bundle(build))
    return lock


# Receipts record the content of the compiled files. The files themselves are `ancient`, because they are hard links into
# the store: all bundles that contain a file share its mtime.
rule bundle:
    input:
        receipts=lambda w: PLAN.build(w).receipt_files,
        files=ancient(lambda w: PLAN.build(w).part_files),
        lock=locked_bundle,
        source=ancient(input_path(CHECKPOINT)),
    output:
        manifest="results/{chip}/{model}-{tag}/manifest.json",
        config="results/{chip}/{model}-{tag}/config.json",
        post_config="results/{chip}/{model}-{tag}/post_config.json",
        run="results/{chip}/{model}-{tag}/run.sh",
        tokenizer_txt="results/{chip}/{model}-{tag}/tokenizer.txt",
        tokenizer=output_path(TOKENIZER),
    log:
        "results/logs/bundle/{chip}/{model}-{tag}.log",
    benchmark:
        "results/benchmarks/bundle/{chip}/{model}-{tag}.tsv"
    threads: 2
    resources:
        mem_mb=job_memory("bundle"),
        runtime=lambda w, attempt: PLAN.build(w).needs("bundle").minutes * attempt,
    params:
        recipe=lambda w: PLAN.build(w).bundle_arguments,
        lock=lambda w, input: folder_of(input.lock[0]),
        folder=lambda w, output: os.path.dirname(output.manifest),
        receipt=lambda w: (
            [] if USES_STORAGE else ["--receipt", str(PLAN.build(w).bundle_receipt)]
        ),
        code=PLAN.bundle_code,
    shell:
        "axzoo bundle {params.folder:q} --chip {wildcards.chip} --lock {params.lock:q} --source {input.source:q} "
        "--receipts {input.receipts:q} {params.receipt:q} {params.recipe:q} > {log:q} 2>&1"


def completed_files(build):
    """The outputs of `bundle`. With a storage provider, the tokenizer folder is omitted: the S3 plugin does not find a
    folder that was missing when it first looked, and the checks depend on the folder anyway.
    """
    files = [
        "manifest.json",
        "config.json",
        "post_config.json",
        "run.sh",
        "tokenizer.txt",
    ]
    files += [] if USES_STORAGE else ["tokenizer/config.json"]
    return [f"{build.bundle}/{file}" for file in files]
