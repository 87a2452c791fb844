"""What all tables of the configuration share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
# In seconds; inf is never.
Timeout = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A table: no other keys than its own, and each of its own type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
