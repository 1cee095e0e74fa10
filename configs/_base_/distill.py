# Base of every distilled config: imports the package and adds its hook.
custom_imports = dict(imports=['rdimkd_det'], allow_failed_imports=False)
custom_hooks = [dict(type='DistillHook')]
