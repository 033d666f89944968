"""Classes of this package become known to transformers' Auto classes: the one place that touches them."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioTokenization,
    AutoModelForCausalLM,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_clsi import ClsiConfig
from .configuration_clsi_units import ClsiUnitsConfig
from .feature_extraction_clsi import ClsiFeatureExtractor
from .modeling_clsi import ClsiForCausalLM, ClsiModel
from .modeling_clsi_units import ClsiUnitsModel
from .pipeline_clsi import SpeechContinuationPipeline
from .processing_clsi import ClsiProcessor


def register() -> None:
    """Make the Auto classes load our checkpoints, and our checkpoints carry their code; may be called again.

    After it, `AutoConfig`, `AutoModel`, `AutoModelForCausalLM`, `AutoFeatureExtractor`, `AutoProcessor` and
    `AutoModelForAudioTokenization` know the model types `clsi` and `clsi_units`, and `pipeline` the task
    `speech-continuation`. Every `save_pretrained` then also writes the Python files that
    `trust_remote_code=True` needs where hf_clsi is not installed.
    """
    for config_class in (ClsiConfig, ClsiUnitsConfig):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        config_class.register_for_auto_class("AutoConfig")
    AutoModel.register(ClsiConfig, ClsiModel, exist_ok=True)
    AutoModelForCausalLM.register(ClsiConfig, ClsiForCausalLM, exist_ok=True)
    AutoFeatureExtractor.register(ClsiConfig, ClsiFeatureExtractor, exist_ok=True)
    AutoProcessor.register(ClsiConfig, ClsiProcessor, exist_ok=True)
    # The processor loads its audio tokenizer by AutoModel, since MimiModel is known to no other Auto class.
    AutoModel.register(ClsiUnitsConfig, ClsiUnitsModel, exist_ok=True)
    AutoModelForAudioTokenization.register(ClsiUnitsConfig, ClsiUnitsModel, exist_ok=True)

    if "speech-continuation" not in PIPELINE_REGISTRY.get_supported_tasks():  # it warns of a second time
        PIPELINE_REGISTRY.register_pipeline(
            "speech-continuation",
            pipeline_class=SpeechContinuationPipeline,
            pt_model=AutoModelForCausalLM,
            type="audio",
        )

    ClsiModel.register_for_auto_class("AutoModel")
    ClsiForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    ClsiFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
    ClsiProcessor.register_for_auto_class("AutoProcessor")
    ClsiUnitsModel.register_for_auto_class("AutoModelForAudioTokenization")
