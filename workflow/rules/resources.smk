# Memory and threads that jobs may use. Snakemake schedules by memory only if it knows how much there is.
from axzoo.matrix.job_memory import SNAKEMAKE_MB, memory_request, usable_memory_mb
from axzoo.report import slurm

# Jobs on other machines do not share the memory of this one. Inside a cluster job, the cluster has made room.
RUNS_JOBS_HERE = workflow.is_main_process and workflow.resource_settings.nodes is None
NODE = None  # on SLURM, the largest node

if RUNS_JOBS_HERE and "mem_mb" not in workflow.global_resources:
    workflow.register_resource("mem_mb", usable_memory_mb())


def available_memory():
    """The memory in MB that a job can have, and where; None if unknown."""
    if RUNS_JOBS_HERE:
        return workflow.global_resources["mem_mb"].value, "this machine"
    if NODE:
        return NODE.mem_mb, f"the largest node of the partition {NODE.partition}"
    return None


def job_memory(stage, parts=1):
    """Returns a resource function: the memory of a job, which is refused if no job can have so much."""

    def request(w, attempt):
        build = PLAN.build(w) if hasattr(w, "chip") else PLAN.model(w)
        beside = 0 if RUNS_JOBS_HERE else SNAKEMAKE_MB
        return memory_request(build, stage, parts, attempt, available_memory(), beside)

    return request


def prepare_resources():
    """Adapts a build to where its jobs run, and refuses it if a job can never run there."""
    jobs = [job for job in workflow.dag.needrun_jobs() if job.output]  # without targets
    if workflow.executor_plugin.name == "slurm" and jobs:
        prepare_slurm(jobs[0])
    for job in jobs:
        job.resources  # evaluates the functions of `job_memory`


def prepare_slurm(job):
    """All jobs are taken to run in the partition of `job`."""
    global NODE
    # Not `job.resources`, which would keep the values.
    resources = job.rule.expand_resources(
        job.wildcards_dict, job.input, 1, skip_evaluation={"tmpdir"}
    )
    NODE = slurm.largest_node(resources.get("slurm_partition"))
    if NODE:
        settings = workflow.resource_settings
        settings.max_threads = min(NODE.cpus, settings.max_threads or NODE.cpus)
    slurm.attend(workflow.scheduler._executor, logger.warning)
