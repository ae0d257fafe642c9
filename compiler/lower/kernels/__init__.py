"""TIR kernels of the operators of ``ai.xnorc``, one file a family; ``opset`` names each by ``module:function``.

``product`` is the engine that convolution and matrix product share, ``micro`` holds its inner loops, one for each kind of
machine, and ``outputs`` what is done with finished counts. ``common`` wraps TVM's script builder.
"""
