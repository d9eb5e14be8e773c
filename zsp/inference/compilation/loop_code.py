"""C++ code of loops that allocate nothing in their steps.

Inductor's code of a loop makes every tensor of a step anew, and a handle for each argument, and asks each handle for
its data at every use, which takes longer than the arithmetic of a small step. Here they are made before the loop, with
their data's addresses. What a step makes for itself is written over by the next one. What it hands on is written over
what it was handed, where nothing else reads that any more; the rest is kept twice, to be written in turn.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch._inductor.codegen.common as registry
from torch._inductor import ir
from torch._inductor.codegen.cpp_utils import DTYPE_TO_CPP
from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu
from torch._inductor.codegen.wrapper import EnterSubgraphLine, ExitSubgraphLine, ExternKernelOutLine, WrapperLine
from torch._inductor.utils import DeferredLineBase, IndentedBuffer, parallel_num_threads

from zsp.inference.compilation import product_code

__all__ = ["VERSION", "loops_without_allocations"]

VERSION = hashlib.sha256(inspect.getsource(sys.modules[__name__]).encode()).hexdigest()
"""Of what is written here: code that an earlier version wrote, kept on disk, is not this one's."""


@contextmanager
def loops_without_allocations(given_away: Iterable[str]) -> Iterator[None]:
    """Have Inductor's calls on the CPU written by :class:`_Wrapper`.

    Args:
        given_away: the names of arguments whose places loops may use for what they carry.
    """

    class Wrapper(_Wrapper):
        pass

    Wrapper.given_away = frozenset(given_away)
    registry.init_backend_registration()
    before = registry.device_codegens["cpu"]
    registry.device_codegens["cpu"] = registry.DeviceCodegen(
        before.scheduling, before.wrapper_codegen, Wrapper, before.fx_wrapper_codegen
    )
    try:
        yield
    finally:
        registry.device_codegens["cpu"] = before


class _Declarations(DeferredLineBase):
    """The place before a loop for its tensors, which are known only when its code has been written."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("declarations")
        self.lines = lines

    def __call__(self) -> str:
        return "\n".join(self.lines)

    def _new_line(self, line: str) -> _Declarations:
        return _Declarations(self.lines)


class _LoopBegins(WrapperLine):
    def __init__(self, wrapper: _Wrapper) -> None:
        self._wrapper = wrapper

    def codegen(self, code: IndentedBuffer) -> None:
        self._wrapper.declarations.append([])
        code.writeline(_Declarations(self._wrapper.declarations[-1]))


class _LoopEnds(_LoopBegins):
    def codegen(self, code: IndentedBuffer) -> None:
        self._wrapper.declarations.pop()


class _Exchange(WrapperLine):
    """The end of a step. Which of its results have taken the place of what was carried is known when it is written."""

    def __init__(self, wrapper: _Wrapper, arguments: Sequence[str], moved: Sequence[tuple[str, str, str]]) -> None:
        self._wrapper, self._arguments, self._moved = wrapper, arguments, moved

    def codegen(self, code: IndentedBuffer) -> None:
        self._wrapper.exchange(code, self._arguments, self._moved)


class _Product(ExternKernelOutLine):
    """A product with few columns."""

    wrapper: _Wrapper

    def codegen(self, code: IndentedBuffer) -> None:
        if self.wrapper.declarations:
            code.writeline(self.wrapper.product(self.node))
        else:
            super().codegen(code)


class _Wrapper(CppWrapperCpu):
    """Writes a call as Inductor does, but for what is in a loop.

    Attributes:
        given_away: see :func:`loops_without_allocations`.
        declarations: for each loop whose code is being written, what is declared before it.
    """

    given_away: frozenset[str] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.declarations: list[list[str]] = []
        self._defined: set[str] = set()
        self._kept: set[str] = set()
        self._in_place: set[str] = set()
        self._successors: dict[str, str] = {}
        self._written_over: dict[str, str] = {}

    @classmethod
    def create(
        cls, is_subgraph: bool, subgraph_name: str | None, parent_wrapper: Any, partition_signatures: Any = None
    ) -> _Wrapper:
        """As Inductor asks for it."""
        return cls()

    def write_header(self) -> None:
        """What comes before the call: a handle that knows where the data of its tensor are, which do not move."""
        super().write_header()
        self.header.splice(
            """
            struct KeptTensor : RAIIAtenTensorHandle {
                explicit KeptTensor(AtenTensorHandle handle)
                    : RAIIAtenTensorHandle(handle), data(RAIIAtenTensorHandle::data_ptr()) {}
                void* data_ptr() const { return data; }
                void* data;
            };
            """
        )

    # -- the loop -----------------------------------------------------------------------------------------------------

    def codegen_while_loop(self, while_loop: Any, stack_output: bool = False) -> None:
        """The condition and the body in one endless loop, with references to what is outside as their arguments."""
        carried = self._get_while_loop_carried_output_names(while_loop)
        changed = {name for out in while_loop.mutation_outputs for name in out.get_mutation_names()}
        for buffer, name in zip(while_loop.carried_inputs, carried, strict=True):
            if buffer.get_name() in changed:
                self._in_place.add(name)
            # what is carried is written over in the loop
            function = "assign_tensors_out" if buffer.get_name() in changed | self.given_away else "clone"
            self._write_handle(name, f"aoti_torch_{function}({buffer.codegen_reference()}, &{name}_handle)")
        same = [f"{carried[0]}_fixed_{i}" for i in range(len(while_loop.additional_inputs))]
        for buffer, name in zip(while_loop.additional_inputs, same, strict=True):
            self._write_handle(name, f"aoti_torch_new_tensor_handle({buffer.codegen_reference()}, &{name}_handle)")
        arguments = [*carried, *same]
        condition = while_loop.cond_subgraph
        self._donate(while_loop.body_subgraph.graph, len(carried))
        self.writeline(_LoopBegins(self))
        self.writeline("while (true) {")
        for part, results in ((condition, []), (while_loop.body_subgraph, carried)):
            self.writeline(EnterSubgraphLine(self, part.graph))
            self.codegen_subgraph(part, arguments, results)
            if part is condition:
                goes_on = self._value(torch.bool, part.graph.graph_outputs[0].codegen_reference())
                self.writeline(f"if (!{goes_on}) break;")
            self.writeline(ExitSubgraphLine(self))
        self.writeline("}")
        self.writeline(_LoopEnds(self))

    def _donate(self, body: Any, n_carried: int) -> None:
        """Have Inductor write what is carried next over what was carried, in the last operation that reads this."""
        for name, result in zip(list(body.graph_inputs)[:n_carried], body.graph_outputs, strict=False):
            value = body.graph_inputs_original[name]
            if isinstance(value, ir.InputBuffer) and not isinstance(result, ir.ReinterpretView):
                body.graph_inputs_original[name] = ir.DonatedBuffer(name=name, layout=value.layout)
                self._successors[name] = result.get_name()

    def codegen_subgraph_prefix(self, subgraph: Any, outer_inputs: Sequence[str], outer_outputs: Sequence[str]) -> None:
        """Names for the arguments."""
        for (name, value), outer in zip(subgraph.graph.graph_inputs.items(), outer_inputs, strict=True):
            if isinstance(value, ir.TensorBox):
                # an expression makes a new handle, which lives as long as the reference
                self.writeline(f"auto&& {name} = {outer};")
                self._kept.add(name)

    def codegen_subgraph_suffix(self, subgraph: Any, outer_inputs: Sequence[str], outer_outputs: Sequence[str]) -> None:
        """Exchange results for what was carried before."""
        arguments = list(subgraph.graph.graph_inputs)
        results = [result.codegen_reference() for result in subgraph.graph.graph_outputs]
        places = zip(outer_outputs, outer_inputs, arguments, results, strict=False)  # a condition has no outer outputs
        moved = [
            (outer, argument, result)
            for outer, before, argument, result in places
            # what is handed on as it was, or changed where it is, stays
            if not (result == argument and outer == before) and outer not in self._in_place
        ]
        self.writeline(_Exchange(self, arguments, moved))

    def exchange(self, code: IndentedBuffer, arguments: Sequence[str], moved: Sequence[tuple[str, str, str]]) -> None:
        """The lines that hand results on, in the place of what was carried."""
        times = Counter(result for _, _, result in moved)
        exchanged = []
        for outer, argument, result in moved:
            if self._written_over.get(result) == argument:
                continue
            # what a library has made has another kind of handle
            if result in arguments or times[result] > 1 or result not in self._kept:
                name = f"{outer}_next"
                for line in self._handle(name, f"aoti_torch_clone({result}, &{name}_handle)"):
                    code.writeline(line)
                result = name
            exchanged.append(f"std::swap({outer}, {result});")
        for line in exchanged:
            code.writeline(line)

    def codegen_tensor_item(self, dtype: torch.dtype, tensor: str, scalar: str, indented_buffer: Any = None) -> None:
        """The line that reads a number."""
        if not self.declarations:
            super().codegen_tensor_item(dtype, tensor, scalar, indented_buffer)
        else:
            (indented_buffer or self).writeline(f"auto {scalar} = {self._value(dtype, tensor)};")

    @staticmethod
    def _value(dtype: torch.dtype, tensor: str) -> str:
        return f"*static_cast<{DTYPE_TO_CPP[dtype]}*>({tensor}.data_ptr())"

    def _write_handle(self, name: str, call: str) -> None:
        for line in self._handle(name, call):
            self.writeline(line)

    @staticmethod
    def _handle(name: str, call: str) -> list[str]:
        """The lines that make a handle by a call."""
        return [
            f"AtenTensorHandle {name}_handle;",
            f"AOTI_TORCH_ERROR_CODE_CHECK({call});",
            f"KeptTensor {name}({name}_handle);",
        ]

    # -- products -----------------------------------------------------------------------------------------------------

    def generate_extern_kernel_out(self, node: ir.ExternKernelOut) -> None:
        """The lines that have a library write its result where it is told."""
        if parallel_num_threads() == 1 and product_code.Product.can_be(node):
            self.writeline(_Product(self, node))
        else:
            super().generate_extern_kernel_out(node)

    def product(self, node: ir.ExternKernelOut) -> str:
        """The line that computes a product by code of our own."""
        product = product_code.Product(node)
        for name, code, declaration in (
            ("few_columns", product_code.FUNCTION, ""),
            (product.name, product.code, product.declaration),
        ):
            if name not in self._defined:
                self._defined.add(name)
                self._define_kernel_helper(name, code, cpp_definition=declaration)
        return product.call

    # -- the tensors of its steps -------------------------------------------------------------------------------------

    def make_buffer_allocation(self, buffer: Any) -> str:
        """The line that makes a tensor."""
        shape, stride, name = buffer.get_size(), buffer.get_stride(), buffer.get_name()
        is_static = self.is_statically_known_list_of_ints([*shape, *stride])
        if not self.declarations or not is_static or buffer.get_is_pinned():
            return super().make_buffer_allocation(buffer)
        device_type, device_index = self.codegen_device(buffer.get_device()).split(",")
        sizes, strides = (", ".join(f"{int(n)}L" for n in [*numbers, 0]) for numbers in (shape, stride))
        self.declarations[-1].append(
            f"AtenTensorHandle {name}_handle; {{ int64_t sizes[] = {{{sizes}}}, strides[] = {{{strides}}}; "
            f"AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided({len(shape)}, sizes, strides, "
            f"{self.codegen_dtype(buffer.get_dtype())}, {device_type}, {device_index}, &{name}_handle)); }} "
            f"KeptTensor {name}({name}_handle);"
        )
        self._kept.add(name)
        return ""

    def make_buffer_free(self, buffer: Any) -> str:
        """The line that frees a tensor after its last use."""
        return "" if buffer.get_name() in self._kept else super().make_buffer_free(buffer)

    def make_free_by_names(self, names_to_del: list[str]) -> str:
        """The same for several."""
        return super().make_free_by_names([name for name in names_to_del if name not in self._kept])

    def can_reuse(self, input_buffer: Any, operation: Any = None) -> bool:
        """Whether a tensor's place may be taken, by an operation's results: here, if they look the same.

        Otherwise they would need a handle of their own for data that move when what is carried is exchanged.
        """
        results = [] if operation is None else operation.get_outputs()
        name = input_buffer.get_name()
        if name in self._successors and [result.get_name() for result in results] != [self._successors[name]]:
            return False
        return super().can_reuse(input_buffer) and all(_look_same(input_buffer.node, result.node) for result in results)

    def make_buffer_reuse(self, old: Any, new: Any, delete_old: bool) -> str:
        """The line that has a tensor take the place of another one, which is not needed any more."""
        if old.get_name() not in self._kept:
            return super().make_buffer_reuse(old, new, delete_old)
        if not _look_same(old, new):
            return self.make_buffer_allocation(new)
        self._kept.add(new.get_name())
        self._written_over[new.get_name()] = old.get_name()
        return f"auto& {new.get_name()} = {old.get_name()};"


def _look_same(first: Any, second: Any) -> bool:
    """Whether both are tensors of the same shape and strides."""
    one, other = first.get_output_spec(), second.get_output_spec()
    are_tensors = isinstance(one, ir.Layout) and isinstance(other, ir.Layout)
    return are_tensors and (one.size, one.stride) == (other.size, other.stride)
