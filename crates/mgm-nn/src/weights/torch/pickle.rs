//! A reader of the pickles that `torch.save` writes.
//!
//! A pickle is a program for a stack machine that may name any Python function. This one knows only the opcodes and the names of
//! checkpoints; everything else is refused by its name and nothing is ever called. Values live in one list and refer to each other by number, so
//! that shared, deep and cyclic structures cost what their bytes in the file cost: no value is copied, nothing recurses.

use std::collections::HashMap;
use std::ops::Range;

use crate::weights::element_type::ElementType;

/// Number of a value.
pub(super) type Id = u32;

/// A value of the pickle. Texts are ranges of its bytes.
#[derive(Debug)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Text(Range<usize>),
    Tuple(Box<[Id]>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Name(Name),
    /// The persistent id of a storage: the tuple's number.
    Storage(Id),
    /// A tensor: how it is rebuilt, and from which arguments.
    Tensor(Rebuild, Id),
    /// Something that no tensor depends on: a float, a byte string, an integer beyond 64 bits, a device.
    Opaque,
}

/// What a checkpoint may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name {
    OrderedDict,
    Rebuild(Rebuild),
    /// `torch.FloatStorage` and its like.
    StorageType(ElementType),
    /// A storage of bytes; the tensor has the type.
    UntypedStorage,
    /// `torch.float16` and its like.
    ScalarType(ElementType),
    /// A class that is mentioned but not called.
    Class,
    /// `torch.Size`, `torch.device`: called, but of no interest.
    Harmless,
}

/// How torch puts a tensor together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rebuild {
    /// `(storage, offset, size, stride, …)`, versions 1 and 2.
    Tensor,
    /// `(storage, offset, size, stride, requires_grad, hooks, dtype, …)`.
    TypedTensor,
    /// `(tensor, …)`.
    Parameter,
    /// `(rebuild, class, arguments, state)`.
    FromType,
}

/// Longest part of a name that is looked at.
const MAX_NAME: usize = 64;

fn name(module: &str, name: &str) -> Option<Name> {
    use ElementType as E;
    if module.len().max(name.len()) > MAX_NAME {
        return None;
    }
    let other = |name: &str| E::Other(name.to_uppercase());
    Some(match (module, name) {
        ("collections", "OrderedDict") => Name::OrderedDict,
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => {
            Name::Rebuild(Rebuild::Tensor)
        }
        ("torch._utils", "_rebuild_tensor_v3") => Name::Rebuild(Rebuild::TypedTensor),
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
            Name::Rebuild(Rebuild::Parameter)
        }
        ("torch._tensor", "_rebuild_from_type_v2") => Name::Rebuild(Rebuild::FromType),
        ("torch", "Tensor") | ("torch.nn.parameter", "Parameter") => Name::Class,
        ("torch", "Size" | "device") => Name::Harmless,
        ("torch.storage", "UntypedStorage") => Name::UntypedStorage,
        ("torch", "DoubleStorage") => Name::StorageType(E::F64),
        ("torch", "FloatStorage") => Name::StorageType(E::F32),
        ("torch", "HalfStorage") => Name::StorageType(E::F16),
        ("torch", "BFloat16Storage") => Name::StorageType(E::Bf16),
        ("torch", "LongStorage") => Name::StorageType(E::I64),
        ("torch", "IntStorage") => Name::StorageType(E::I32),
        ("torch", "ShortStorage") => Name::StorageType(E::I16),
        ("torch", "CharStorage") => Name::StorageType(E::I8),
        ("torch", "ByteStorage") => Name::StorageType(E::U8),
        ("torch", "BoolStorage") => Name::StorageType(E::Bool),
        (
            "torch",
            "ComplexFloatStorage"
            | "ComplexDoubleStorage"
            | "QInt8Storage"
            | "QInt32Storage"
            | "QUInt8Storage",
        ) => Name::StorageType(other(name.trim_end_matches("Storage"))),
        ("torch", "float64") => Name::ScalarType(E::F64),
        ("torch", "float32") => Name::ScalarType(E::F32),
        ("torch", "float16") => Name::ScalarType(E::F16),
        ("torch", "bfloat16") => Name::ScalarType(E::Bf16),
        ("torch", "int64") => Name::ScalarType(E::I64),
        ("torch", "int32") => Name::ScalarType(E::I32),
        ("torch", "int16") => Name::ScalarType(E::I16),
        ("torch", "int8") => Name::ScalarType(E::I8),
        ("torch", "uint8") => Name::ScalarType(E::U8),
        ("torch", "bool") => Name::ScalarType(E::Bool),
        ("torch", "uint16" | "uint32" | "uint64") => Name::ScalarType(other(name)),
        ("torch", _) if name.starts_with("float8_") || name.starts_with("complex") => {
            Name::ScalarType(other(name))
        }
        _ => return None,
    })
}

/// A pickle that was read.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    bytes: &'a [u8],
    values: Vec<Value>,
    /// The value it stands for.
    pub(super) root: Id,
    /// Bytes up to and with its end; another one may follow.
    pub(super) len: usize,
}

impl Pickle<'_> {
    pub(super) fn value(&self, id: Id) -> &Value {
        self.values.get(id as usize).unwrap_or(&Value::None)
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.value(id) {
            // Checked when it was read.
            Value::Text(range) => std::str::from_utf8(self.bytes.get(range.clone())?).ok(),
            _ => None,
        }
    }

    /// All values, in the order in which they were made.
    pub(super) fn values(&self) -> impl Iterator<Item = &Value> {
        self.values.iter()
    }

    pub(super) fn items(&self, id: Id) -> Option<&[Id]> {
        match self.value(id) {
            Value::Tuple(items) => Some(items),
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    pub(super) fn size(&self, id: Id) -> Option<usize> {
        match self.value(id) {
            Value::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }
}

/// Reads one pickle from the beginning of `bytes`. The error is one line without the file's name.
pub(super) fn read(bytes: &[u8]) -> Result<Pickle<'_>, String> {
    let mut machine = Machine {
        bytes,
        position: 0,
        values: vec![
            Value::None,
            Value::Bool(false),
            Value::Bool(true),
            Value::Opaque,
            Value::Tuple(Box::default()),
        ],
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    loop {
        let at = machine.position;
        match machine.step() {
            Ok(Step::Next) => {}
            Ok(Step::Stop(root)) => {
                return Ok(Pickle {
                    bytes,
                    values: machine.values,
                    root,
                    len: machine.position,
                });
            }
            Err(message) => return Err(format!("pickle, byte {at}: {message}")),
        }
    }
}

// The values that need no place of their own.
const NONE: Id = 0;
const FALSE: Id = 1;
const TRUE: Id = 2;
const OPAQUE: Id = 3;
const EMPTY_TUPLE: Id = 4;

enum Step {
    Next,
    Stop(Id),
}

struct Machine<'a> {
    bytes: &'a [u8],
    position: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    fn step(&mut self) -> Result<Step, String> {
        let opcode = self.array::<1>()?[0];
        match opcode {
            // PROTO, FRAME
            0x80 => {
                let version = self.array::<1>()?[0];
                if version > 5 {
                    return Err(format!(
                        "expected pickle protocol 5 or lower, found {version}"
                    ));
                }
            }
            0x95 => {
                self.array::<8>()?;
            }
            b'.' => return Ok(Step::Stop(self.pop()?)),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.pop_mark()?;
            }
            b'N' => self.stack.push(NONE),
            0x88 => self.stack.push(TRUE),
            0x89 => self.stack.push(FALSE),
            b'G' => {
                self.array::<8>()?;
                self.stack.push(OPAQUE);
            }
            b'K' => {
                let value = self.array::<1>()?[0];
                self.push(Value::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()))?;
            }
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()))?;
            }
            0x8a => {
                let len = self.length::<1>()?;
                self.long(len)?;
            }
            0x8b => {
                let len = self.length::<4>()?;
                self.long(len)?;
            }
            // Texts: BINUNICODE, SHORT_BINUNICODE, BINUNICODE8; BINSTRING and SHORT_BINSTRING are Python 2's.
            b'X' | b'T' => {
                let len = self.length::<4>()?;
                self.text(len)?;
            }
            0x8c | b'U' => {
                let len = self.length::<1>()?;
                self.text(len)?;
            }
            0x8d => {
                let len = self.length::<8>()?;
                self.text(len)?;
            }
            // Byte strings.
            b'C' => {
                let len = self.length::<1>()?;
                self.raw(len)?;
            }
            b'B' => {
                let len = self.length::<4>()?;
                self.raw(len)?;
            }
            0x8e => {
                let len = self.length::<8>()?;
                self.raw(len)?;
            }
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b']' => self.push(Value::List(Vec::new()))?,
            b')' => self.stack.push(EMPTY_TUPLE),
            b't' => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items.into()))?;
            }
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                self.reachable(count)?;
                let items = self.stack.split_off(self.stack.len() - count);
                self.push(Value::Tuple(items.into()))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.extend_list(vec![item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.extend_list(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.extend_dict(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.extend_dict(&items)?;
            }
            b'q' => {
                let index = self.array::<1>()?[0];
                self.remember(index.into())?;
            }
            b'r' => {
                let index = u32::from_le_bytes(self.array()?);
                self.remember(index)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b'h' => {
                let index = self.array::<1>()?[0];
                self.recall(index.into())?;
            }
            b'j' => {
                let index = u32::from_le_bytes(self.array()?);
                self.recall(index)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.name(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Some(module), Some(name)) = (self.text_of(module), self.text_of(name)) else {
                    return Err("a name that is not a text".to_string());
                };
                self.name(module, name)?;
            }
            // REDUCE, NEWOBJ: a call.
            b'R' | 0x81 => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                self.call(callee, arguments)?;
            }
            // BUILD: attributes. Those of a state dict say which version its modules have.
            b'b' => {
                self.pop()?;
                self.reachable(1)?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Storage(id))?;
            }
            other => {
                return Err(format!(
                    "opcode {:?} (0x{other:02x}) is none that torch.save writes for tensors",
                    char::from(other)
                ));
            }
        }
        Ok(Step::Next)
    }

    fn take(&mut self, len: usize) -> Result<Range<usize>, String> {
        let left = self.bytes.len() - self.position;
        if len > left {
            return Err(format!("truncated: {len} bytes are needed, {left} left"));
        }
        let start = self.position;
        self.position += len;
        Ok(start..self.position)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let range = self.take(N)?;
        let mut out = [0; N];
        out.copy_from_slice(&self.bytes[range]);
        Ok(out)
    }

    /// A length of `N` bytes.
    fn length<const N: usize>(&mut self) -> Result<usize, String> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&self.array::<N>()?);
        usize::try_from(u64::from_le_bytes(wide)).map_err(|error| error.to_string())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        // No name of a checkpoint is longer.
        const MOST: usize = 256;
        let rest = &self.bytes[self.position..];
        let Some(len) = rest.iter().take(MOST).position(|byte| *byte == b'\n') else {
            return Err("a name without an end".to_string());
        };
        self.position += len + 1;
        std::str::from_utf8(&rest[..len]).map_err(|_| "a name that is not UTF-8".to_string())
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        let id = Id::try_from(self.values.len()).map_err(|_| "too many values")?;
        self.values.push(value);
        self.stack.push(id);
        Ok(())
    }

    /// That `count` values lie above the last mark.
    fn reachable(&self, count: usize) -> Result<(), String> {
        let above = self.stack.len() - self.marks.last().copied().unwrap_or(0);
        if above < count {
            return Err(format!("{count} values are needed, {above} on the stack"));
        }
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, String> {
        self.reachable(1)?;
        self.stack.pop().ok_or_else(|| "empty stack".to_string())
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("no mark on the stack")?;
        Ok(self.stack.split_off(mark))
    }

    fn long(&mut self, len: usize) -> Result<(), String> {
        let range = self.take(len)?;
        let bytes = &self.bytes[range.clone()];
        if len > 8 {
            self.stack.push(OPAQUE);
            return Ok(());
        }
        let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..len].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)))
    }

    fn text(&mut self, len: usize) -> Result<(), String> {
        let range = self.take(len)?;
        std::str::from_utf8(&self.bytes[range.clone()]).map_err(|_| "a text that is not UTF-8")?;
        self.push(Value::Text(range))
    }

    fn raw(&mut self, len: usize) -> Result<(), String> {
        self.take(len)?;
        self.stack.push(OPAQUE);
        Ok(())
    }

    fn text_of(&self, id: Id) -> Option<&'a str> {
        match self.values.get(id as usize)? {
            Value::Text(range) => std::str::from_utf8(self.bytes.get(range.clone())?).ok(),
            _ => None,
        }
    }

    fn top(&mut self) -> Result<&mut Value, String> {
        self.reachable(1)?;
        let top = self.stack.last().ok_or("empty stack")?;
        self.values
            .get_mut(*top as usize)
            .ok_or_else(|| "no such value".to_string())
    }

    fn extend_list(&mut self, items: Vec<Id>) -> Result<(), String> {
        match self.top()? {
            Value::List(list) if list.is_empty() => *list = items,
            Value::List(list) => list.extend(items),
            _ => return Err("items for something that is not a list".to_string()),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Id]) -> Result<(), String> {
        let (pairs, odd) = items.as_chunks::<2>();
        if !odd.is_empty() {
            return Err("a key without a value".to_string());
        }
        match self.top()? {
            Value::Dict(dict) => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            _ => return Err("entries for something that is not a dictionary".to_string()),
        }
        Ok(())
    }

    fn remember(&mut self, index: u32) -> Result<(), String> {
        self.reachable(1)?;
        if let Some(&top) = self.stack.last() {
            self.memo.insert(index, top);
        }
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<(), String> {
        let Some(&id) = self.memo.get(&index) else {
            return Err(format!("nothing was remembered as number {index}"));
        };
        self.stack.push(id);
        Ok(())
    }

    fn name(&mut self, module: &str, name: &str) -> Result<(), String> {
        match self::name(module, name) {
            Some(name) => self.push(Value::Name(name)),
            None => Err(format!(
                "refused: it names {:?}, which no checkpoint of tensors needs; nothing was executed",
                format!("{module}.{name}")
                    .chars()
                    .take(120)
                    .collect::<String>()
            )),
        }
    }

    fn call(&mut self, callee: Id, arguments: Id) -> Result<(), String> {
        let name = match self.values.get(callee as usize) {
            Some(Value::Name(name)) => name.clone(),
            _ => return Err("a call of something that is not a name".to_string()),
        };
        let Some(Value::Tuple(items)) = self.values.get(arguments as usize) else {
            return Err("a call without a tuple of arguments".to_string());
        };
        match name {
            Name::OrderedDict if items.is_empty() => self.push(Value::Dict(Vec::new())),
            Name::Rebuild(rebuild) => self.push(Value::Tensor(rebuild, arguments)),
            Name::Harmless => {
                self.stack.push(OPAQUE);
                Ok(())
            }
            other => Err(format!("a call of {other:?}")),
        }
    }
}
