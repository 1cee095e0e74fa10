# What every distilled config inherits: the package, and the hook that serves it.
custom_imports = dict(imports=['rdimkd_det'], allow_failed_imports=False)
custom_hooks = [dict(type='DistillHook')]
