"""What other trainers call the keys of a recipe: the words people type, before the nearest spelling is tried."""

_POSITIONS = "train.rows_per_step x data.context_tokens"
_TABLE = (  # words, our key (empty = there is none), how to convert where the unit or the meaning differs
    ("learning_rate lr max_lr peak_lr base_lr", "schedule.lr_max", ""),
    ("min_lr lr_end min_learning_rate final_lr", "schedule.lr_min", ""),
    ("lr_scheduler lr_scheduler_type lr_decay_style lr_schedule", "schedule.kind", ""),
    ("warmup_steps num_warmup_steps lr_warmup_iters warmup_iters", "schedule.warmup_tokens", f"steps x {_POSITIONS}"),
    ("warmup_ratio warmup_fraction lr_warmup_fraction", "schedule.warmup_tokens", "ratio x train.total_tokens"),
    ("warmup", "schedule.warmup_tokens", "a number of tokens"),
    (
        "batch_size global_batch_size train_batch_size total_batch_size",
        "train.rows_per_step",
        "rows of one optimizer step over all ranks",
    ),
    (
        "micro_batch_size per_device_train_batch_size per_gpu_batch_size train_micro_batch_size_per_gpu",
        "train.micro_batch_rows",
        "rows of one forward of one rank",
    ),
    (
        "gradient_accumulation_steps gradient_accumulation accumulate_grad_batches accumulation_steps",
        "train.rows_per_step",
        "micro-batch x accumulation x ranks; the accumulation follows from it and train.micro_batch_rows",
    ),
    (
        "max_steps train_iters num_steps total_steps steps num_train_steps max_iters iterations",
        "train.total_tokens",
        f"steps x {_POSITIONS}; --max-steps N ends one call early",
    ),
    (
        "epochs num_epochs num_train_epochs max_epochs n_epochs",
        "train.total_tokens",
        "epochs x the tokens that `data_tools inspect SHARDS` counts",
    ),
    ("tokens num_tokens max_tokens train_tokens token_budget", "train.total_tokens", ""),
    (
        "seq_length seq_len max_seq_length max_seq_len sequence_length block_size context_length max_length",
        "data.context_tokens",
        "the length of a row; model.max_length is what the model is planned to read",
    ),
    (
        "mlm_probability masking_probability mask_rate mask_ratio mlm_prob masking_rate",
        "mask.peak_rate",
        "0 to 1; for one rate throughout mask.start_rate and mask.end_rate, too",
    ),
    ("whole_word_mask wwm whole_word_masking", "mask.unit", '"word" or "token"'),
    ("adam_beta1", "optimizer.beta1", ""),
    ("adam_beta2", "optimizer.beta2", ""),
    ("betas adam_betas", "optimizer.beta1", "and optimizer.beta2, a number each"),
    ("adam_epsilon adam_eps epsilon", "optimizer.eps", ""),
    ("wd", "optimizer.weight_decay", ""),
    ("max_grad_norm clip_grad grad_clip gradient_clipping grad_norm_clip", "optimizer.gradient_clip", ""),
    ("optim optimizer_type optimizer_name", "optimizer.kind", ""),
    ("use_muon muon", "optimizer.kind", '"muon"'),
    ("muon_momentum muon_beta", "optimizer.momentum", ""),
    ("muon_lr matrix_lr adam_lr adamw_lr", "schedule.lr_max", "one rate: Muon's updates have the size of AdamW's"),
    ("muon_weight_decay muon_wd", "optimizer.weight_decay", "one for all that decays"),
    ("nesterov", "", "optimizer.kind muon always has Nesterov's momentum; remove it"),
    ("ns_steps newton_schulz_steps muon_ns_steps", "", "Muon always takes five Newton-Schulz steps; remove it"),
    ("output_dir output out_dir save_dir run_dir output_directory", "run_directory", "at the top of the file"),
    ("resume_from_checkpoint resume load_checkpoint", "", "a finished or broken run goes on by itself; see --resume"),
    (
        "save_steps save_interval save_every checkpoint_interval checkpoint_steps",
        "train.checkpoint_every_steps",
        "",
    ),
    ("save_total_limit num_checkpoints max_checkpoints", "train.keep_checkpoints", ""),
    ("logging_steps log_interval log_every log_steps", "train.log_every_steps", ""),
    ("eval_steps eval_interval evaluation_steps eval_every", "evaluation.every_steps", ""),
    ("eval_file validation_file eval_data validation valid_data heldout held_out", "evaluation.shards", "a shard set"),
    ("eval", "evaluation", ""),
    ("random_seed", "train.seed", ""),
    ("pretrained model_name_or_path pretrained_model init_checkpoint load", "train.init_from", ""),
    ("fp16 bf16 precision mixed_precision dtype", "train.deepspeed", "its file owns the precision"),
    ("zero_stage zero ds_config deepspeed_config", "train.deepspeed", 'such as "zero1"'),
    (
        "gradient_checkpointing activation_checkpointing",
        "kernels.activation_checkpoint_fraction",
        "share of the layers, 0 to 1",
    ),
    ("attn_implementation attention_backend flash_attention use_flash_attn", "kernels.attention", ""),
    ("torch_compile", "kernels.compile", ""),
    ("num_hidden_layers n_layers n_layer depth layers", "model.num_layers", ""),
    ("d_model dim n_embd width embedding_size", "model.hidden_size", ""),
    ("num_attention_heads n_heads n_head heads", "model.num_heads", ""),
    ("ffn_hidden_size ffn_size d_ff mlp_size", "model.intermediate_size", ""),
    ("vocab vocabulary_size", "model.vocab_size", ""),
    ("layer_norm_eps rms_norm_eps", "model.norm_eps", ""),
    ("initializer_range init_method_std", "model.init_std", ""),
    ("max_position_embeddings", "model.max_length", ""),
    ("rope_theta global_rope_theta rope_base", "model.rope_base_global", ""),
    ("local_rope_theta", "model.rope_base_local", ""),
    ("global_attn_every_n_layers", "model.global_every", ""),
    ("local_attention sliding_window", "model.local_window", ""),
    ("dropout hidden_dropout attention_dropout hidden_dropout_prob", "", "there is no dropout; remove it"),
    ("tokenizer_name tokenizer_path tokenizer_dir", "data.tokenizer", ""),
    (
        "train_file train_files train_data data_path dataset datasets shards source",
        "data.sources",
        '[[data.sources]] tables, each with a path = "SHARDS"',
    ),
    ("dataloader_num_workers workers", "data.num_workers", ""),
    ("masking mlm", "mask", ""),
)
WORDS = {word: (key, how) for words, key, how in _TABLE for word in words.split()}
"""Word -> our dotted key or section, and how to convert."""


def answer_to(word: str) -> str:
    """Return what a recipe has for another trainer's word, as half a sentence; empty if the table has not the word."""
    key, how = WORDS.get(word.lower(), ("", ""))
    if not key:
        return how
    return f"here it is {key}" + (f" ({how})" if how else "")
