"""Put the workflow into the wheel: Snakefile, rules, profiles and environments, in the layout of this repository."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILES = ("Snakefile", "config.yaml", "workflow", "profiles", "envs")


class WorkflowFiles(BuildHookInterface):
    """Adds the files to a wheel. An editable installation uses those of the checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the files and their places."""
        if version != "editable":
            build_data["force_include"] |= {name: f"smmil/_pipeline/{name}" for name in FILES}
