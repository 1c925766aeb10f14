# `layer` compiles one layer of a model. Where layers are so small that starting a job for each would take longer than
# compiling it, or where `--config layers_per_job=N` says so, layers share a job: each such batch of numbers is a rule
# of its own, layers_<first>_<last>, because wildcards cannot count.
def locks_of(batch):
    return [f"layer_{layer}.json" for layer in batch.layers]


def locked_layers(batch):
    """An input function: the locks of the layers, once the lock has been made."""

    def paths(w):
        for name in batch.names:
            PLAN.build_with(w, f"{name.format(**w)}.axmodel")
        return locked(*locks_of(batch))(w)

    return paths


def calibrated(w):
    """An input function: what gptq rounds by; nothing for other builds."""
    return CALIBRATION.format(model=w.model) if PLAN.build(w).calibration_files else []


def minutes_for(layers):
    """A resource: of a job of so many layers."""
    return lambda w, attempt: PLAN.build(w).minutes("layer", layers) * attempt


for batch in PLAN.batches:

    rule:
        name:
            batch.rule
        input:
            lock=locked_layers(batch),
            source=ancient(read(CHECKPOINT)),
            calibration=calibrated,
        output:
            files=expand(
                "results/{{chip}}/{{model}}-{{tag}}/{layer}.axmodel", layer=batch.names
            ),
            receipts=expand(
                "results/receipts/{{chip}}/{{model}}-{{tag}}/{layer}.json",
                layer=batch.names,
            ),
        log:
            f"results/logs/layer/{{chip}}/{{model}}-{{tag}}/{batch.log_name}.log",
        benchmark:
            f"results/benchmarks/layer/{{chip}}/{{model}}-{{tag}}/{batch.log_name}.tsv"
        wildcard_constraints:
            model="|".join(map(re.escape, batch.models)),
        resources:
            mem_mb=lambda w, attempt: PLAN.build(w).layer_mem_mb * attempt,
            runtime=minutes_for(len(batch.layers)),
        params:
            recipe=lambda w: PLAN.build(w).layer_arguments,
            calibration=lambda w, input: (
                ["--calibration", folder_of(input.calibration)]
                if input.calibration
                else []
            ),
            lock=lock_files(*locks_of(batch)),
            code=lambda w: PLAN.layer_code(w),
        shell:
            "axzoo layer --lock {params.lock:q} --source {input.source:q} --store {PLAN.store:q} "
            "--output {output.files:q} --receipt {output.receipts:q} {params.recipe:q} "
            "{params.calibration:q} > {log:q} 2>&1"
