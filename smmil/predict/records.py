"""`prediction.json`: what one run says of one image, with the run and every setting behind it."""

from collections.abc import Mapping
from typing import Literal

from pydantic import JsonValue

from smmil.artifacts.records import FeatureFacts, Record


class ModelFacts(Record):
    """The run that made a prediction."""

    dataset: str
    encoder: str
    method: str
    seed: int
    learning_rate: float
    run: str
    protocol: str
    selection_score: float
    weights_sha256: str


class StoredFeatures(FeatureFacts):
    """Identity of the features, and how they were computed and stored."""

    dtype: str
    precision: str


class Prediction(Record):
    """`prediction.json`: the prediction of one image.

    Attributes:
        bag_id: name of the image.
        modality: "wsi" or "ct".
        state: "ok", or "empty" without tissue; then there are no scores.
        reason: why it is empty.
        predicted: 1 if the probability is above 0.5.
        instances: number of tiles or slices.
        instance_threshold: threshold of instance scores from validation, None if unknown.
        signed_agreement: correlation of the sign-aware score with the logit over validation bags, None if the run has
            no direction.
        map: scores in the picture, "score", "signed" or "signed_sm".
        mpp: um per px at level 0.
        mpp_source: where that comes from.
        tile_mpp: um per px of a tile.
        random_weights: whether the encoder is untrained.
        warnings: what looks wrong with the image (`preprocessing.instances.checks`), what could not be compared with
            the training, and a sign-aware score not to be trusted.
        options: how the image was cut.
    """

    bag_id: str
    modality: str
    state: Literal["ok", "empty"]
    reason: str = ""
    probability: float | None
    logit: float | None
    predicted: int | None
    instances: int
    instance_threshold: float | None = None
    instances_above_threshold: int | None = None
    signed_agreement: float | None = None
    map: str = ""
    mpp: int | float | None = None
    mpp_source: str = ""
    tile_mpp: int | float | None = None
    random_weights: bool = False
    warnings: tuple[str, ...] = ()
    options: Mapping[str, JsonValue]
    features: StoredFeatures
    model: ModelFacts
    versions: Mapping[str, str] = {}
