from .widget import FeatureBrowser as FeatureBrowser
