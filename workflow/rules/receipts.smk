# Jobs are forced if their inputs or outputs differ from what their receipts say (src/axzoo/matrix/comparison.py).
# Snakemake sees neither replaced files with older times nor lost and edited files. Input functions ask, so that only jobs
# of the plan are compared, and again after a lock has run. Only the main process plans; with a storage provider, the
# results are not on this machine.
COMPARES = workflow.is_main_process and not USES_STORAGE
COMPARISON = PLAN.comparison()


def force(outputs, differences):
    """Makes a job run if there are differences. Jobs are forced by their outputs."""
    lines = COMPARISON.note(outputs, differences) if COMPARES else None
    if lines is not None:
        workflow.dag.forcefiles.update(outputs)
        for line in lines:
            logger.info(line)


def compared(outputs, differences):
    """Returns an input function without files that forces the job."""

    def no_files(w):
        force([path.format(**w) for path in outputs], differences(w))
        return []

    return no_files


def remember_digests():
    """Keeps what this run has read. Read-only commands keep nothing: they have no executor, or that of dry runs."""
    executes = workflow.executor_plugin is not None and not workflow.dryrun
    if COMPARES and executes and not workflow.touch:
        COMPARISON.remember()


atexit.register(remember_digests)
