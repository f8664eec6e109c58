from smmil.data.batch import BagBatch as BagBatch
from smmil.data.sources import load_bags as load_bags
from smmil.models import build_model as build_model
from smmil.predict.pipeline import predict as predict
from smmil.sm.operator import Sm as Sm
from smmil.sm.operator import normalise_adjacency as normalise_adjacency

__version__: str
