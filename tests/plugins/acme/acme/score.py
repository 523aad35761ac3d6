"""`acme_score`: count the right answers of a poll."""

from __future__ import annotations

from pydantic import BaseModel, Field

from dispatcher import Context, Done, Effect, Emit, Event, Failed, Handler, Outcome


class Score(Handler):
    """Count how many of the answers are right.

    Emits `acme_scored` with the score.

    Run twice = once: it computes, and what it emits is stored with the journal.
    """

    effect = Effect.PURE

    answers: list[str] = Field(description="What the person answered.")
    right: list[str] = Field(description="What would have been right, in the same order.")

    class Result(BaseModel):
        """The score."""

        score: int
        out_of: int

    def run(self, event: Event, context: Context) -> Outcome:
        """Compare answer by answer."""
        if len(self.answers) > len(self.right):
            return Failed(f"there are {len(self.answers)} answers to {len(self.right)} questions")
        score = sum(given == right for given, right in zip(self.answers, self.right, strict=False))
        result = self.Result(score=score, out_of=len(self.right))
        return Done(result, emits=[Emit("acme_scored", result.model_dump())])
