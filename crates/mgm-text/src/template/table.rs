//! The templates themselves: the words that the released models were trained with.

use super::{Role, Style, Template};

macro_rules! curious_user_system {
    ($person:literal) => {
        concat!(
            "A chat between a curious ",
            $person,
            " and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the ",
            $person,
            "'s questions."
        )
    };
}

const USER_SYSTEM: &str = curious_user_system!("user");
const HUMAN_SYSTEM: &str = curious_user_system!("human");
const VISION_SYSTEM: &str = "You are a helpful language and vision assistant. You are able to understand the visual \
    content that the user provides, and assist the user with a variety of tasks using natural language.";
// There really is no space before "The visual content will".
const TAG_SYSTEM: &str = "A chat between a curious user and an artificial intelligence assistant. The assistant is \
    able to understand the visual content that the user provides, and assist the user with a variety of tasks using \
    natural language.The visual content will be provided with the following format: <Image>visual content</Image>.";
const LLAMA_2_SYSTEM: &str = "You are a helpful, respectful and honest assistant. Always answer as helpfully as \
    possible, while being safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, \
    dangerous, or illegal content. Please ensure that your responses are socially unbiased and positive in nature.\n\n\
    If a question does not make any sense, or is not factually coherent, explain why instead of answering something not \
    correct. If you don't know the answer to a question, please don't share false information.";

const V0_QUESTION: &str =
    "What are the key differences between renewable and non-renewable energy sources?";
const V0_ANSWER: &str = "Renewable energy sources are those that can be replenished naturally in a relatively short \
    amount of time, such as solar, wind, hydro, geothermal, and biomass. Non-renewable energy sources, on the other \
    hand, are finite and will eventually be depleted, such as coal, oil, and natural gas. Here are some key differences \
    between renewable and non-renewable energy sources:\n\
    1. Availability: Renewable energy sources are virtually inexhaustible, while non-renewable energy sources are \
    finite and will eventually run out.\n\
    2. Environmental impact: Renewable energy sources have a much lower environmental impact than non-renewable \
    sources, which can lead to air and water pollution, greenhouse gas emissions, and other negative effects.\n\
    3. Cost: Renewable energy sources can be more expensive to initially set up, but they typically have lower \
    operational costs than non-renewable sources.\n\
    4. Reliability: Renewable energy sources are often more reliable and can be used in more remote locations than \
    non-renewable sources.\n\
    5. Flexibility: Renewable energy sources are often more flexible and can be adapted to different situations and \
    needs, while non-renewable sources are more rigid and inflexible.\n\
    6. Sustainability: Renewable energy sources are more sustainable over the long term, while non-renewable sources \
    are not, and their depletion can lead to economic and social instability.\n";

/// What the Vicuna-like templates share.
const TWO: Template = Template {
    name: "vicuna_v1",
    style: Style::Two,
    system_header: "",
    system: USER_SYSTEM,
    user: "USER",
    assistant: "ASSISTANT",
    separator: " ",
    answer_separator: "</s>",
    stop_tokens: &["</s>"],
    examples: &[],
    announces_image: false,
};

const SINGLE: Template = Template {
    style: Style::Single,
    user: "Human",
    assistant: "Assistant",
    separator: "###",
    answer_separator: "",
    system: HUMAN_SYSTEM,
    ..TWO
};

const INSTRUCT: Template = Template {
    style: Style::Instruct,
    separator: "<s>",
    ..TWO
};

const CHATML: Template = Template {
    style: Style::Markup,
    system_header: "<|im_start|>system\n",
    user: "<|im_start|>user\n",
    assistant: "<|im_start|>assistant\n",
    separator: "<|im_end|>",
    answer_separator: "",
    stop_tokens: &["<|im_end|>", "<|endoftext|>"],
    ..TWO
};

/// MGM-7B and 13B.
pub(super) static VICUNA_V1: Template = TWO;
static IMGSP_V1: Template = Template {
    name: "imgsp_v1",
    ..TWO
};
static LLAVA_V1: Template = Template {
    name: "llava_v1",
    system: HUMAN_SYSTEM,
    ..TWO
};
static V1_MMTAG: Template = Template {
    name: "v1_mmtag",
    system: TAG_SYSTEM,
    announces_image: true,
    ..TWO
};
static PHI_2: Template = Template {
    name: "phi_2",
    answer_separator: "<|endoftext|>",
    stop_tokens: &["<|endoftext|>"],
    ..TWO
};

static V0: Template = Template {
    name: "v0",
    examples: &[(Role::User, V0_QUESTION), (Role::Assistant, V0_ANSWER)],
    ..SINGLE
};
static LLAVA_V0: Template = Template {
    name: "llava_v0",
    ..SINGLE
};
static V0_MMTAG: Template = Template {
    name: "v0_mmtag",
    system: TAG_SYSTEM,
    announces_image: true,
    ..SINGLE
};

/// MGM-8x7B.
pub(super) static MISTRAL_INSTRUCT: Template = Template {
    name: "mistral_instruct",
    system: "",
    ..INSTRUCT
};
static LLAMA_2: Template = Template {
    name: "llama_2",
    system: LLAMA_2_SYSTEM,
    ..INSTRUCT
};
static LLAVA_LLAMA_2: Template = Template {
    name: "llava_llama_2",
    system: VISION_SYSTEM,
    ..INSTRUCT
};

/// MGM-2B.
pub(super) static GEMMA: Template = Template {
    name: "gemma",
    style: Style::Gemma,
    system: "",
    user: "user",
    assistant: "model",
    separator: "",
    answer_separator: "<eos>",
    stop_tokens: &["<eos>", "<end_of_turn>"],
    ..TWO
};

/// MGM-34B.
pub(super) static CHATML_DIRECT: Template = Template {
    name: "chatml_direct",
    system: "Answer the questions.",
    ..CHATML
};
static MPT: Template = Template {
    name: "mpt",
    system: "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers.",
    ..CHATML
};

/// MGM-8B. The assistant's header really says `system`: the released models were trained with it.
pub(super) static LLAMA_3: Template = Template {
    name: "llama_3",
    style: Style::Markup,
    system_header: "<|start_header_id|>system<|end_header_id|>\n\n",
    system: VISION_SYSTEM,
    user: "<|start_header_id|>user<|end_header_id|>\n\n",
    assistant: "<|start_header_id|>system<|end_header_id|>\n\n",
    separator: "<|eot_id|>",
    answer_separator: "",
    stop_tokens: &["<|end_of_text|>", "<|eot_id|>"],
    ..TWO
};

/// SmolLM2's own ChatML, a line break after every message.
pub(super) static SMOLLM2: Template = Template {
    name: "smollm2",
    system: "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    separator: "<|im_end|>\n",
    ..CHATML
};

/// The built-in model: SmolLM2's markup without any system message.
pub(super) static SMOL: Template = Template {
    name: "smol",
    system: "",
    separator: "<|im_end|>\n",
    ..CHATML
};

static PLAIN: Template = Template {
    name: "plain",
    style: Style::Plain,
    system: "",
    user: "",
    assistant: "",
    separator: "\n",
    answer_separator: "",
    ..TWO
};

/// Official keys, and ours.
pub(super) static KEYS: &[(&str, &Template)] = &[
    ("default", &V0),
    ("v0", &V0),
    ("v1", &VICUNA_V1),
    ("vicuna_v1", &VICUNA_V1),
    ("phi_2", &PHI_2),
    ("gemma", &GEMMA),
    ("llama_2", &LLAMA_2),
    ("llama_3", &LLAMA_3),
    ("imgsp_v1", &IMGSP_V1),
    ("mistral_instruct", &MISTRAL_INSTRUCT),
    ("chatml_direct", &CHATML_DIRECT),
    ("mistral_direct", &CHATML_DIRECT),
    ("plain", &PLAIN),
    ("v0_plain", &PLAIN),
    ("llava_v0", &LLAVA_V0),
    ("v0_mmtag", &V0_MMTAG),
    ("llava_v1", &LLAVA_V1),
    ("v1_mmtag", &V1_MMTAG),
    ("llava_llama_2", &LLAVA_LLAMA_2),
    ("mpt", &MPT),
    ("smollm2", &SMOLLM2),
    ("smol", &SMOL),
];
