"""`axzoo llm_build`: build a single checkpoint with the workflow and place its bundle in the output folder."""
