"""The contracts between the layers: Task, Batch, LossTerms, Sum and Rows, RunConfig, Stage, the registry."""
