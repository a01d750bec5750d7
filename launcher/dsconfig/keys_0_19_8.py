"""The keys that DeepSpeed 0.19.8 knows, section by section, and what it does with one it does not know. Data only.

Collected from the installed package: Pydantic models (they refuse unknown keys) and the get_* functions of runtime/config.py
(they ignore them). tests/stages/test_deepspeed_keys.py compares this table with the package that is installed.
"""

from __future__ import annotations

VERSION = "0.19.8"

TOP_LEVEL = """
activation_checkpointing aio autotuning bf16 bfloat16 checkpoint comet comms_logger communication_data_type compile csv_monitor
data_efficiency data_types dataloader_drop_last datastates_ckpt disable_allgather disable_python_gc dump_state expert_parallel
flops_profiler fp16 gradient_accumulation_steps gradient_allreduce_op gradient_clipping gradient_predivide_factor hybrid_engine
log_level managed_gradient_accumulation memory_breakdown optimizer pipeline prescale_gradients scheduler
seq_parallel_communication_data_type steps_per_print tensor_parallel tensorboard timers torch_autocast train_batch_size
train_micro_batch_size_per_gpu use_data_before_expert_parallelism vocabulary_size wall_clock_breakdown wandb weight_quantization
zero_allow_untested_optimizer zero_force_ds_cpu_optimizer zero_optimization
"""

# Sections whose unknown keys stop DeepSpeed with an error.
STRICT = {
    "bf16": "bf16_master_weights_and_grads bf16_optimizer_states check_grad_overflow enabled immediate_grad_update",
    "comet": "api_key enabled experiment_key experiment_name mode online project samples_log_interval workspace",
    "comms_logger": "debug enabled prof_all prof_ops verbose",
    "compile": """
        autoep_non_moe debug_log deepcompile double_buffer free_activation free_activation_threshold keep_all_input_tensors
        keep_int_input_tensors offload_activation offload_activation_pin_memory offload_opt_states offload_parameters passes
        symmetric_memory sync_after_allgather sync_after_reduce sync_before_allgather sync_before_reduce
    """,
    "csv_monitor": "enabled job_name output_path",
    "fp16": """
        auto_cast consecutive_hysteresis enabled fp16_master_weights_and_grads hysteresis initial_scale_power loss_scale
        loss_scale_window min_loss_scale
    """,
    "hybrid_engine": """
        enable_cuda_graph enabled inference_tp_size max_out_tokens pin_parameters release_inference_cache
        tp_gather_partition_size
    """,
    "tensor_parallel": """
        autotp_size dtype injection_policy_tuple keep_module_on_host kernel_inject partition_config preset_model
        replace_with_kernel_inject tensor_parallel tp tp_overlap_comm vocab_parallel_ce_backend vocab_parallel_lm_head
    """,
    "tensor_parallel.tp": "mpu tp_grain_size tp_group tp_size",
    "tensorboard": "enabled job_name output_path",
    "timers.throughput": "enabled synchronized",
    "wandb": "enabled group project team",
    "weight_quantization": "enabled num_bits post_init_quant q_groups q_type quantized_initialization",
    "zero_optimization": """
        allgather_bucket_size allgather_partitions compute_grad_norm contiguous_gradients cpu_offload cpu_offload_param
        cpu_offload_use_pin_memory elastic_checkpoint enable_sanity_checks ignore_unused_parameters leaf_module legacy_stage1
        load_from_fp32_weights log_trace_cache_warnings memory_efficient_linear offload_optimizer offload_param overlap_comm
        override_module_apply parameter_alignment pipeline_loading_checkpoint reduce_bucket_size reduce_scatter
        round_robin_gradients save_muon_momentum_buffer_in_memory stage stage3_allgather_sequential
        stage3_gather_16bit_weights_on_model_save stage3_gather_fp16_weights_on_model_save stage3_max_live_parameters
        stage3_max_reuse_distance stage3_model_persistence_threshold stage3_module_granularity_threshold
        stage3_param_persistence_threshold stage3_prefetch_bucket_size stage3_use_all_reduce_for_fetch_params sub_group_size
        use_multi_rank_bucket_allreduce zenflow zero_hpz_partition_size zero_quantized_gradients
        zero_quantized_nontrainable_weights zero_quantized_weights
        allgather_sequential gather_16bit_weights_on_model_save max_live_parameters max_reuse_distance
        model_persistence_threshold module_granularity_threshold param_persistence_threshold prefetch_bucket_size
        use_all_reduce_for_fetch_params
    """,
    "zero_optimization.leaf_module": "classes name_suffixes names",
    "zero_optimization.offload_optimizer": """
        buffer_count cpuadam_cores_perc device fast_init nvme_path pin_memory pipeline_read pipeline_write ratio super_offload
    """,
    "zero_optimization.offload_param": "buffer_count buffer_size device max_in_cpu nvme_path pin_memory",
    "zero_optimization.zenflow": """
        auto_ratio full_warm_up_rounds offload overlap_step pt_reserved_cores_perc select_interval select_strategy
        steps_per_epoch topk_ratio update_interval
    """,
}

# Sections whose unknown keys are ignored without a word.
SILENT = {
    "": TOP_LEVEL,
    "activation_checkpointing": """
        contiguous_memory_optimization cpu_checkpointing number_checkpoints partition_activations profile
        synchronize_checkpoint_boundary
    """,
    "aio": "block_size intra_op_parallelism overlap_events queue_depth single_submit use_gds",
    "autotuning": """
        arg_mappings enabled end_profile_step exps_dir fast max_train_batch_size max_train_micro_batch_size_per_gpu metric
        metric_path min_train_batch_size min_train_micro_batch_size_per_gpu model_info model_info_path mp_size
        num_tuning_micro_batch_sizes overwrite results_dir start_profile_step tuner_early_stopping tuner_num_trials tuner_type
    """,
    "checkpoint": "checkpoint_serialization load_universal parallel_write tag_validation use_node_local_storage writer",
    "checkpoint.parallel_write": "pipeline_stage",
    "checkpoint.writer": "data_parallel decoupled io_buffer_double io_buffer_size io_multiplier show_statistics type",
    "data_efficiency": "data_routing data_sampling enabled seed",
    "data_types": "buffer_dtype grad_accum_dtype keep_in_fp32_modules param_dtype",
    "expert_parallel": """
        async_split_plan autoep_size combine_impl comm_backend comm_max_tokens_per_rank comm_num_sm comm_qp_margin
        disable_triton_grouped_mm enabled expert_activation expert_pattern expert_tensor_parallel_size expert_w1 expert_w2
        expert_w3 gate_up_impl has_shared_experts load_balance_coeff moe_layer_pattern num_expert_groups num_experts_attr
        num_limited_groups preset_model route_norm route_scale routed_scaling_factor router_pattern row_weighting_impl
        score_apply score_func shared_experts_gate_pattern shared_experts_pattern top_k top_k_attr use_grouped_mm
        validate_folding_routing
    """,
    "flops_profiler": "detailed enabled module_depth output_file profile_step recompute_fwd_factor top_modules",
    "optimizer": "legacy_fusion params type",
    "pipeline": """
        activation_checkpoint_interval grad_partitioned partition pipe_partitioned seed_layers stages use_reentrant
    """,
    "scheduler": "params type",
    "timers": "throughput",
    "torch_autocast": "dtype enabled lower_precision_safe_modules",
}

# DeepSpeed stops with an error, even for "enabled": false.
REMOVED = {
    "amp": "use bf16, fp16 or torch_autocast",
    "compression_training": "quantize or prune outside of DeepSpeed",
    "curriculum_learning": "use data_efficiency.data_sampling.curriculum_learning",
    "eigenvalue": "remove it, mixture of quantization is gone",
    "elasticity": "set the batch sizes themselves",
    "graph_harvesting": "remove it",
    "nebula": "remove it, checkpoints are written by torch.save",
    "progressive_layer_drop": "drop layers in the model's own code",
    "quantize_training": "quantize in the model's own code",
    "sparse_attention": "use an attention kernel of the model's library",
    "sparse_gradients": "build the embedding with sparse=True",
    "zero_optimization.mics_hierarchical_params_gather": "use zero_hpz_partition_size",
    "zero_optimization.mics_shard_size": "use zero_hpz_partition_size",
    "zero_optimization.zeropp_loco_param": "remove it, quantized gradients have no error feedback any more",
}

DEPRECATED = {
    "zero_optimization.cpu_offload": "offload_optimizer: {device: cpu}",
    "zero_optimization.cpu_offload_param": "offload_param: {device: cpu}",
    "zero_optimization.cpu_offload_use_pin_memory": "pin_memory inside offload_optimizer and offload_param",
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
}

# Lower case: DeepSpeed compares these names without regard to case. Others are looked up in torch.optim, case and all.
OPTIMIZERS = "adagrad adam adamw lamb lion muadam muadamw musgd muon"
TORCH_OPTIMIZERS = "ASGD Adadelta Adafactor Adamax LBFGS NAdam RAdam RMSprop Rprop SGD SparseAdam"
# Looked up in DeepSpeed's lr_schedules, then in torch.optim.lr_scheduler, case and all.
SCHEDULERS = "LRRangeTest OneCycle WarmupCosineLR WarmupDecayLR WarmupLR"
TORCH_SCHEDULERS = """
ChainedScheduler ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR ExponentialLR LambdaLR LinearLR MultiStepLR
MultiplicativeLR OneCycleLR PolynomialLR ReduceLROnPlateau SequentialLR StepLR
"""
