# Receipts say what the compiled files hold; the files themselves must exist, whatever their age: hard links into the
# store share one age among all bundles.
rule bundle:
    input:
        receipts=lambda w: PLAN.build(w).receipt_files,
        files=ancient(lambda w: PLAN.build(w).part_files),
        lock=locked("index.json"),
        source=ancient(read(CHECKPOINT)),
    output:
        manifest="results/{chip}/{model}-{tag}/manifest.json",
        config="results/{chip}/{model}-{tag}/config.json",
        post_config="results/{chip}/{model}-{tag}/post_config.json",
        run="results/{chip}/{model}-{tag}/run.sh",
        tokenizer=made(TOKENIZER),
    log:
        "results/logs/bundle/{chip}/{model}-{tag}.log",
    benchmark:
        "results/benchmarks/bundle/{chip}/{model}-{tag}.tsv"
    threads: 2
    resources:
        mem_mb=lambda w, attempt: PLAN.build(w).needs("bundle").mem_mb * attempt,
        runtime=lambda w, attempt: PLAN.build(w).needs("bundle").minutes * attempt,
    params:
        recipe=lambda w: PLAN.build(w).bundle_arguments,
        lock=lambda w, input: folder_of(input.lock[0]),
        folder=lambda w, output: os.path.dirname(output.manifest),
        code=PLAN.bundle_code,
    shell:
        "axzoo bundle {params.folder:q} --chip {wildcards.chip} --lock {params.lock:q} --source {input.source:q} "
        "--receipts {input.receipts:q} {params.recipe:q} > {log:q} 2>&1"


def completed_files(build):
    """The outputs of `bundle`, but for the tokenizer's folder where it is one: S3's plugin does not see a folder that
    was not there when it first looked, and the checks ask for it anyway."""
    files = ["manifest.json", "config.json", "post_config.json", "run.sh"]
    files += [] if STORED else ["tokenizer/tokenizer.json"]
    return [f"{build.bundle}/{file}" for file in files]
