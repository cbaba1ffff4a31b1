from .absorption import PlantedAbsorption as PlantedAbsorption
from .absorption import planted_absorption as planted_absorption
from .recovery import Recovery as Recovery
from .recovery import evaluate_recovery as evaluate_recovery
