# The zoo. `snakemake --cores 8` builds config/zoo.yaml; `--configfile FILE` builds another matrix; `demo` builds
# config/demo.yaml. Any single file of results/ is a target too.
import gc
import re
from functools import cache

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.utils import min_version

from axzoo.core.errors import AxzooError
from axzoo.core.locks import BuildLock, start_again
from axzoo.matrix.plan import make_plan

min_version("9.19")

# Python's collector of cycles need not look through what is imported by now, at the end least of all, nor every few
# hundred objects through all jobs: that takes a sixth of a plan's time, and finds next to nothing.
gc.freeze()
gc.set_threshold(50_000, 100)

# Before anything is planned, so that `onstart` knows whether another build has been at work since.
BUILD_LOCK = BuildLock()

# Not Snakemake's `configfile:`: axzoo's own reader names the line of whatever is wrong.
try:
    PLAN = make_plan(
        workflow.configfiles or ["config/zoo.yaml"],
        demo="config/demo.yaml",
        config=workflow.config_settings.config,
    )
except AxzooError as error:
    raise WorkflowError(str(error)) from None


wildcard_constraints:
    chip="|".join(map(re.escape, PLAN.chips)),
    model="|".join(map(re.escape, PLAN.models)),
    tag="|".join(map(re.escape, PLAN.tags)),
    index=r"\d+",
    stem="|".join(map(re.escape, PLAN.stems)),


# Not the checks alone: Snakemake makes a lost file again only where it is asked for. Compiled files that are there need
# not be asked for, and a plan takes as long as it has files.
def files_of(builds):
    wanted = []
    for build in builds:
        wanted += build.missing_files
        wanted += completed_files(build)
        wanted += build.check_files
    return wanted


@cache  # asked for again after each lock
def say_what_is_left_out():
    for line in PLAN.left_out_lines:
        logger.info(line)


def the_whole_matrix(wildcards):
    say_what_is_left_out()
    return files_of(PLAN.wanted)


rule all:
    default_target: True
    input:
        the_whole_matrix,


rule demo:
    input:
        lambda w: files_of(PLAN.demo),


def lock_the_project():
    try:
        if not BUILD_LOCK.acquire():
            start_again()
    except BaseException as error:
        # A cluster's executor has begun, and there will be no jobs after which Snakemake would end it.
        workflow.scheduler._executor.shutdown()
        workflow.cleanup_source_archive()
        if isinstance(error, AxzooError):
            raise WorkflowError(str(error)) from None
        raise


# Dry runs, reports, and builds with nothing to do do not get here, so they never wait for another build. A job of a
# cluster belongs to the build that sent it.
onstart:
    if workflow.is_main_process:
        lock_the_project()
    # Snakemake's own limit of 100 jobs a second has it look through all waiting jobs again a second after each look, once
    # more for every job that has ended; and the process lingers for a second after its last look.
    limit = workflow.scheduling_settings.max_jobs_per_timespan
    is_default = limit and (limit.max_jobs, limit.timespan) == (100, 1)
    if is_default:
        workflow.scheduler.job_rate_limiter = None


localrules:
    all,
    demo,


include: "workflow/rules/storage.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/lock.smk"
include: "workflow/rules/calibrate.smk"
include: "workflow/rules/parts.smk"
include: "workflow/rules/bundle.smk"
include: "workflow/rules/check.smk"
