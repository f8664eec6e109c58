"""The command `smmil`: one verb per task, over the workflow and the command lines of the other rooms."""
