# `snakemake --cores 8` builds config/zoo.yaml, `--configfile FILE` another matrix, and the target `demo` builds
# config/demo.yaml. Any file in results/ can be a target.
import atexit
import gc
import re
from functools import cache

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.utils import min_version

from axzoo.core.errors import AxzooError
from axzoo.core.locks import BuildLock, start_again
from axzoo.matrix.forecasts import plan_lines
from axzoo.matrix.outlook import (
    host_lines,
    refuse_full_disk,
    refuse_problems,
    to_fetch,
)
from axzoo.matrix.plan import make_plan
from axzoo.report.outcome import outcome_of

min_version("9.19")

# Garbage collection takes a sixth of the planning time and frees almost nothing: exclude the objects that exist now, and
# collect less often.
gc.freeze()
gc.set_threshold(50_000, 100)

# Created before planning, so that `onstart` can detect whether another build ran in the meantime.
BUILD_LOCK = BuildLock()

# axzoo reads the matrix itself instead of with `configfile:`, because its errors contain line numbers.
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


def files_of(builds):
    """The manifests, which represent the bundles, and the reports of the checks."""
    return [
        file
        for build in builds
        for file in (f"{build.bundle}/manifest.json", *build.check_files)
    ]


ANNOUNCED = set()


def announce(builds):
    """Refuses builds that cannot succeed, and logs which ones a board's host cannot load, how much is to be fetched,
    and the forecast of speed and memory; once for each model."""
    builds = [build for build in builds if build.model not in ANNOUNCED]
    ANNOUNCED.update(build.model for build in builds)
    if workflow.is_main_process and builds:
        refuse_problems(builds)
        for line in host_lines(builds):
            logger.warning(line)
        if line := to_fetch(builds):
            logger.info(line)
        for line in plan_lines(builds):
            logger.info(line)


@cache  # Snakemake evaluates the input of `all` again after each lock
def log_left_out_builds():
    for line in PLAN.left_out_lines:
        logger.info(line)


def matrix_files(wildcards):
    log_left_out_builds()
    announce(PLAN.wanted)
    return files_of(PLAN.wanted)


def demo_files(wildcards):
    announce(PLAN.demo)
    return files_of(PLAN.demo)


rule all:
    default_target: True
    input:
        matrix_files,


rule demo:
    input:
        demo_files,


def prepare_build():
    try:
        if not BUILD_LOCK.acquire():
            start_again()
        prepare_resources()
        if not USES_STORAGE:
            refuse_full_disk(
                b for b in (*PLAN.wanted, *PLAN.demo) if b.model in ANNOUNCED
            )
    except BaseException as error:
        # The executor is already running, and Snakemake shuts it down only after jobs have run.
        workflow.scheduler._executor.shutdown()
        workflow.cleanup_source_archive()
        if isinstance(error, AxzooError):
            raise WorkflowError(str(error)) from None
        raise


# Snakemake runs `onstart` only if there are jobs to run, so dry runs, reports and up-to-date builds never wait for
# another build. Jobs on a cluster are covered by the lock of the build that submitted them.
onstart:
    if workflow.is_main_process:
        prepare_build()
    if COMPARES and (ahead := COMPARISON.start()):
        logger.info(
            f"{ahead} files of results/ were dated ahead of this machine's clock: they are dated now"
        )
    # With its default limit of 100 jobs per second, Snakemake reschedules a second after each finished job, and the
    # process lingers for a second at the end.
    limit = workflow.scheduling_settings.max_jobs_per_timespan
    is_default = limit and (limit.max_jobs, limit.timespan) == (100, 1)
    if is_default:
        workflow.scheduler.job_rate_limiter = None


onerror:
    if workflow.is_main_process:
        logger.error(outcome_of(workflow.dag, workflow.scheduler.failed).message)


localrules:
    all,
    demo,


include: "workflow/rules/storage.smk"
include: "workflow/rules/resources.smk"
include: "workflow/rules/receipts.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/lock.smk"
include: "workflow/rules/calibrate.smk"
include: "workflow/rules/parts.smk"
include: "workflow/rules/bundle.smk"
include: "workflow/rules/check.smk"
