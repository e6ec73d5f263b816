def config(train, model):
    cfg={'train_micro_batch_size_per_gpu':train.batch_size//train.workers.count,'gradient_accumulation_steps':1,'gradient_clipping':train.clip_norm,'zero_optimization':{'stage':train.zero.stage},'steps_per_print':10**9,'zero_allow_untested_optimizer':True,'zero_force_ds_cpu_optimizer':False}
    if model.dtype=='bf16': cfg['torch_autocast']={'enabled':True,'dtype':'bfloat16'}
    cfg["comms_logger"]={"enabled":True,"prof_all":True,"verbose":False,"debug":False}
    return cfg
