"""What every section of a job file is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of all sections: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
