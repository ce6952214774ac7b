from . import reference


def seqpool(x, weight, bias=None, *, norm_weight=None, norm_bias=None, eps=1e-5, backend=None):
    return reference.seqpool(x, weight, bias, norm_weight=norm_weight, norm_bias=norm_bias, eps=eps)
