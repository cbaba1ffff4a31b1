"""SAEDashboard 0.8.0 at work, in its own environment (make dashboard): JSON jobs in, an answer a line out.

    {"do": "load", "model": folder, "sae": folder}           a Llama of Hugging Face, an SAE folder of SAELens
    {"do": "run", "tokens": file, "hook_point", "features": [first, last], "n_quantiles", "n_top", "n_each",
     "buffer", "vis": file, "batch": file or null}           its dashboards of some latents; {"seconds"}
    {"do": "open", "vis": file, "again": file, "html": file} its loader and its viewer on a file
    {"do": "open_batch", "batch": file, "again": file}       the loader of batches

It crashes on TopK folders that do not rescale by the decoder's norm; a copy that does has the same latents,
since our rows are of unit norm.
"""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from sae_dashboard.components_config import (
    ActsHistogramConfig,
    Column,
    FeatureTablesConfig,
    LogitsHistogramConfig,
    LogitsTableConfig,
    SequencesConfig,
)
from sae_dashboard.data_writing_fns import save_feature_centric_vis
from sae_dashboard.layout import SaeVisLayoutConfig
from sae_dashboard.neuronpedia.neuronpedia_converter import NeuronpediaConverter, NpEncoder
from sae_dashboard.neuronpedia.neuronpedia_dashboard import NeuronpediaDashboardBatch
from sae_dashboard.sae_vis_data import SaeVisConfig, SaeVisData
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_lens import SAE
from safetensors.torch import load_file
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions.llama import convert_llama_weights
from transformers import AutoModelForCausalLM, AutoTokenizer


def hooked(folder: str) -> HookedTransformer:
    llama = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    config = llama.config
    d_head = config.hidden_size // config.num_attention_heads
    cfg = HookedTransformerConfig(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=config.num_attention_heads,
        n_key_value_heads=config.num_key_value_heads,
        d_head=d_head,
        d_mlp=config.intermediate_size,
        d_vocab=config.vocab_size,
        n_ctx=config.max_position_embeddings,
        act_fn="silu",
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        positional_embedding_type="rotary",
        rotary_dim=d_head,
        rotary_adjacent_pairs=False,
        eps=config.rms_norm_eps,
        device="cpu",
    )
    model = HookedTransformer(cfg, AutoTokenizer.from_pretrained(folder))
    model.load_and_process_state_dict(
        convert_llama_weights(llama, cfg),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model


def rescaling(folder: str) -> SAE:
    with tempfile.TemporaryDirectory() as temporary:
        copy = shutil.copytree(folder, Path(temporary) / "sae")
        cfg = json.loads((copy / "cfg.json").read_text())
        if "rescale_acts_by_decoder_norm" in cfg:
            cfg["rescale_acts_by_decoder_norm"] = True
        (copy / "cfg.json").chmod(0o644)
        (copy / "cfg.json").write_text(json.dumps(cfg))
        return SAE.load_from_disk(str(copy))


def layout(job: dict) -> SaeVisLayoutConfig:
    sequences = SequencesConfig(
        stack_mode="stack-all",
        buffer=tuple(job["buffer"]),
        n_quantiles=job["n_quantiles"],
        top_acts_group_size=job["n_top"],
        quantile_group_size=job["n_each"],
    )
    tables = (FeatureTablesConfig(), ActsHistogramConfig(), LogitsTableConfig(), LogitsHistogramConfig())
    return SaeVisLayoutConfig(columns=[Column(*tables), Column(sequences)])


def run(job: dict, model: HookedTransformer, sae: SAE) -> dict:
    tokens = load_file(job["tokens"])["tokens"].long()
    cfg = SaeVisConfig(
        hook_point=job["hook_point"],
        features=list(range(*job["features"])),
        minibatch_size_features=128,
        feature_centric_layout=layout(job),
        ignore_tokens={model.tokenizer.bos_token_id},
        verbose=False,
    )
    start, cpu = time.perf_counter(), time.process_time()
    data = SaeVisRunner(cfg).run(encoder=sae, model=model, tokens=tokens)
    data.save_json(job["vis"])
    seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    if job.get("batch"):
        vocabulary = {i: name.replace("▁", " ") for name, i in model.tokenizer.get_vocab().items()}
        facts = SimpleNamespace(
            n_prompts_total=len(tokens),
            n_tokens_in_prompt=tokens.shape[1],
            huggingface_dataset_path="stories",
            model_id="stories",
            layer=1,
            vector_names=None,
        )
        text = NeuronpediaConverter.convert_to_np_json(model, data, facts, vocabulary)
        content = json.loads(text) | {"sae_set": "peer"}
        Path(job["batch"]).write_text(json.dumps(content))
    return seconds


def open_vis(job: dict, model: HookedTransformer, sae: SAE) -> dict:
    cfg = SaeVisConfig(hook_point=job["hook_point"], features=[], feature_centric_layout=layout(job))
    data = SaeVisData.load_json(job["vis"], cfg, model, sae)
    data.save_json(job["again"])
    save_feature_centric_vis(data, job["html"])
    return {"features": len(data.feature_data_dict), "html": Path(job["html"]).stat().st_size}


def open_batch(job: dict) -> dict:
    batch = NeuronpediaDashboardBatch(**json.loads(Path(job["batch"]).read_text()))
    Path(job["again"]).write_text(json.dumps(batch, cls=NpEncoder))
    return {"features": len(batch.features)}


def main() -> None:
    torch.set_num_threads(2)
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    model = sae = None
    for line in sys.stdin:
        job = json.loads(line)
        if job["do"] == "load":
            model, sae = hooked(job["model"]), rescaling(job["sae"])
            answer = {}
        elif job["do"] == "run":
            answer = run(job, model, sae)
        else:
            answer = open_vis(job, model, sae) if job["do"] == "open" else open_batch(job)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
