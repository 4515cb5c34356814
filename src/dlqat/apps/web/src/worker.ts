// SPDX-License-Identifier: Apache-2.0
// The model in a thread of its own: transformers.js has its tokenizer and its generation, onnxruntime-web the arithmetic.

import {
  AutoModelForCausalLM, AutoTokenizer, BaseStreamer, DynamicCache, env, InterruptableStoppingCriteria,
  type PreTrainedModel, type PreTrainedTokenizer, Tensor,
} from "@huggingface/transformers";
import { description, load } from "./files";
import type { News, Order } from "./protocol";
import { type Message, Pieces, reusable, room, stop } from "./shared/chat";
import type { App } from "./shared/model";

const NAME = "model"; // to transformers.js, which looks for model/FILE under env.localModelPath
const say = (news: News) => postMessage(news);
const halt = new InterruptableStoppingCriteria();
let speaker: { app: App; model: PreTrainedModel; tokenizer: PreTrainedTokenizer } | null = null;
let cache: { ids: number[]; keys: DynamicCache } | null = null; // what the model has read, and its keys and values

async function start(base: string): Promise<void> {
  const app = await description(base);
  if (app.target !== "onnx") throw new Error(`this app runs onnx, and the model is ${app.target}; export with --form web`);
  const files = await load(app, base, (what, part) => say({ is: "loading", what, part }));
  say({ is: "loading", what: "starting the runtime", part: 1 });
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.localModelPath = "/";
  env.useBrowserCache = env.useWasmCache = false;
  env.useCustomCache = true;
  env.customCache = {
    match: async (path: string) => {
      const bytes = files.get(path.slice(`/${NAME}/`.length));
      return bytes === undefined ? undefined : new Response(bytes as Uint8Array<ArrayBuffer>);
    },
    put: async () => undefined,
  };
  env.fetch = async () => new Response(null, { status: 404 }); // optional files that the model does not have
  const wasm = env.backends.onnx.wasm!;
  const gpu = app.form !== "web" && (await adapter());
  // Two builds of onnxruntime: the one with WebGPU is twice as large, and 3.5 times slower in WebAssembly.
  const ort = new URL(`../ort/ort-wasm-simd-threaded${gpu ? ".asyncify" : ""}`, base).href;
  wasm.wasmPaths = { mjs: `${ort}.mjs`, wasm: `${ort}.wasm` };
  wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  const [folder, program = ""] = app.program.split("/");
  const data = Object.keys(app.files).find((name) => name.endsWith(".onnx_data"));
  const model = await AutoModelForCausalLM.from_pretrained(NAME, {
    dtype: "fp32",
    device: gpu ? "webgpu" : "wasm",
    subfolder: folder ?? "",
    model_file_name: program.replace(/\.onnx$/, ""),
    use_external_data_format: false,
    session_options: data === undefined ? {} : { externalData: [{ path: data.split("/").at(-1)!, data: files.get(data)! }] },
  });
  // WebAssembly runs a step without a pause, and "stop" is a message: let it in before each.
  const forward = model.forward.bind(model), { port1, port2 } = new MessageChannel();
  model.forward = async (inputs) => {
    await new Promise((heard) => {
      port1.onmessage = heard;
      port2.postMessage(null);
    });
    return forward(inputs);
  };
  const tokenizer = await AutoTokenizer.from_pretrained(NAME);
  speaker = { app, model, tokenizer };
  say({ is: "ready", app, where: gpu ? "WebGPU" : `WebAssembly, ${wasm.numThreads} thread${wasm.numThreads > 1 ? "s" : ""}` });
}

// WebGPU, if it is a GPU: a software adapter is slower than WebAssembly.
async function adapter(): Promise<boolean> {
  const gpu = (navigator as unknown as { gpu?: { requestAdapter(): Promise<{ info?: { isFallbackAdapter?: boolean } } | null> } }).gpu;
  const found = await gpu?.requestAdapter().catch(() => null);
  return found != null && !found.info?.isFallbackAdapter;
}

class Listener extends BaseStreamer {
  private prompt = true;
  constructor(private readonly heard: (token: number) => void) {
    super();
  }
  override put(value: bigint[][]): void {
    if (!this.prompt) this.heard(Number(value[0]![0]));
    this.prompt = false;
  }
  override end(): void {}
}

async function answer(messages: Message[], longest: number, greedy: boolean): Promise<void> {
  const { app, model, tokenizer } = speaker!;
  const ids = prompt(app, tokenizer, messages);
  const most = room(app, ids.length, longest), kept = cache === null ? 0 : reusable(cache.ids, ids);
  const keys = kept > 0 ? cache!.keys : new DynamicCache();
  if (kept === 0) await cache?.keys.dispose();
  cache = null; // not whole while the model runs
  const tokens: number[] = [], times: number[] = [performance.now()];
  const pieces = new Pieces((t) => tokenizer.decode(t, { skip_special_tokens: true }));
  let text = "";
  const streamer = new Listener((token) => {
    tokens.push(token);
    times.push(performance.now());
    if (app.eos.includes(token)) return;
    const piece = pieces.push(token);
    text += piece;
    if (piece !== "") say({ is: "piece", text: piece });
  });
  halt.reset();
  const out = (await model.generate({
    input_ids: int64(ids),
    attention_mask: int64(ids.map(() => 1)),
    past_key_values: keys,
    ...(greedy ? {} : app.sampling),
    do_sample: !greedy && app.sampling["do_sample"] === true,
    eos_token_id: app.eos,
    max_new_tokens: most,
    streamer,
    stopping_criteria: halt,
    return_dict_in_generate: true,
  } as unknown as Parameters<PreTrainedModel["generate"]>[0])) as unknown as { past_key_values: DynamicCache };
  cache = { ids: [...ids, ...tokens].slice(0, out.past_key_values.get_seq_length()), keys: out.past_key_values };
  const last = times.at(-1)!, first = times[1] ?? last;
  const rate = last > first ? ((tokens.length - 1) * 1000) / (last - first) : 0;
  const figures = { prompt: ids.length, kept, tokens, first: (first - times[0]!) / 1000, rate };
  say({ is: "done", text, stop: stop(app, ids.length, tokens, halt.interrupted), figures });
}

// Through the template, which writes every special token itself; a model without one reads the last message.
function prompt(app: App, tokenizer: PreTrainedTokenizer, messages: Message[]): number[] {
  if (app.template === null) return tokenizer.encode(messages.at(-1)!.content);
  const text = tokenizer.apply_chat_template(messages as never, {
    chat_template: app.template,
    add_generation_prompt: true,
    tokenize: false,
  }) as string;
  return tokenizer.encode(text, { add_special_tokens: false });
}

const int64 = (values: number[]) => new Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);

let line: Promise<void> = Promise.resolve(); // one order after another, but for "stop"
addEventListener("message", ({ data: order }: MessageEvent<Order>) => {
  if (order.do === "stop") return halt.interrupt();
  line = line.then(async () => {
    try {
      if (order.do === "load") await start(order.base);
      else if (order.do === "answer") await answer(order.messages, order.longest, order.greedy);
      else {
        await cache?.keys.dispose();
        cache = null;
      }
    } catch (error) {
      say({ is: "failed", why: String((error as Error)?.message ?? error).split("\n")[0]!.slice(0, 400) });
    }
  });
});
