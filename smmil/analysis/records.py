"""`analysis.json`: the results of one dataset and encoder bag by bag, with the pictures beside it."""

from smmil.artifacts.records import Record

Numbers = tuple[float, ...]


class Curve(Record):
    """Mean of a curve over the splits, and the smallest and largest split at every x."""

    x: Numbers
    y: Numbers
    low: Numbers
    high: Numbers


class Calibration(Record):
    """Bags of all splits binned by probability, see `smmil.evaluate.calibration.Bins`; `bags` counts them."""

    probability: Numbers
    share: Numbers
    bags: tuple[int, ...]


class Confusion(Record):
    """Calls of one split at its threshold."""

    seed: int
    true_negative: int
    false_positive: int
    false_negative: int
    true_positive: int

    @property
    def sensitivity(self) -> float | None:
        """Share of the positives that are called positive, None without any."""
        positives = self.true_positive + self.false_negative
        return self.true_positive / positives if positives else None

    @property
    def specificity(self) -> float | None:
        """Share of the negatives that are called negative, None without any."""
        negatives = self.true_negative + self.false_positive
        return self.true_negative / negatives if negatives else None


class MethodAnalysis(Record):
    """Results of one method.

    Curves are means over the splits, None where a class is missing; `auroc`, `average_precision` and `confusion` are by
    split. `positive` and `negative` count the bags of each label in bins of probability, over all splits.
    """

    method: str
    roc: Curve | None = None
    auroc: Numbers = ()
    precision_recall: Curve | None = None
    average_precision: Numbers = ()
    calibration: Calibration | None = None
    confusion: tuple[Confusion, ...]
    positive: tuple[int, ...]
    negative: tuple[int, ...]


class MethodCalls(Record):
    """What the runs of one method say about a bag: mean, smallest and largest probability, and how many are wrong."""

    method: str
    probability: float
    low: float
    high: float
    wrong: int
    runs: int


class WrongBag(MethodCalls):
    """A bag that at least one run calls wrong; `method` is "" as the numbers are over all methods.

    `patient` is the `group` of bags.csv, "" = unknown; `picture` the thumbnail relative to the record, "" = none.
    """

    bag: str
    patient: str
    label: int
    n_instances: int
    methods: tuple[MethodCalls, ...]
    picture: str = ""


class PatientAnalysis(Record):
    """Results of one method by patient: AUROC by split (() with one class only) and the calls."""

    method: str
    auroc: Numbers
    confusion: tuple[Confusion, ...]


class Chart(Record):
    """A picture beside the record: its kind, the group of methods in it, and its file."""

    kind: str
    group: str
    title: str
    file: str


class Analysis(Record):
    """The record; test bags without a label are left out.

    Methods are in the order of the tables, bags that are wrong in most runs come first; `n_patients` is 0 if they are
    unknown or none has two bags, `notes` say what is left out, and why.
    """

    dataset: str
    encoder: str
    splits: tuple[int, ...]
    n_bags: int
    n_positive: int
    n_unlabelled: int
    methods: tuple[MethodAnalysis, ...]
    wrong_bags: tuple[WrongBag, ...]
    n_patients: int = 0
    n_positive_patients: int = 0
    patients: tuple[PatientAnalysis, ...] = ()
    charts: tuple[Chart, ...] = ()
    notes: tuple[str, ...] = ()
    random_weights: bool = False
    command: str = ""
    stage_version: int = 0
