"""`axzoo llm_build`: one checkpoint through the zoo's own workflow, and its bundle into the folder asked for."""
