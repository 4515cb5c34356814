// SPDX-License-Identifier: Apache-2.0
// The model's files, out of the app's package into the app's folder, with a digest before each is used.
// ExecuTorch opens paths; Android's assets are no paths (they lie inside the .apk), so they are copied once.

import { Platform } from "react-native";
import BlobUtil from "react-native-blob-util";
import { refused } from "./shared/digest";
import type { App } from "./shared/model";

export interface Paths {
  modelPath: string;
  tokenizerPath: string;
  tokenizerConfigPath: string;
}

const { fs } = BlobUtil;
const NEEDED = ["tokenizer.json", "tokenizer_config.json"];

export async function prepare(app: App): Promise<Paths> {
  const folder = `${fs.dirs.DocumentDir}/dlqat-${app.files[app.program]!.sha256.slice(0, 12)}`;
  if (!(await fs.isDir(folder))) await fs.mkdir(folder);
  for (const name of [app.program, ...NEEDED]) await placed(app, name, `${folder}/${name}`);
  return {
    modelPath: `${folder}/${app.program}`,
    tokenizerPath: `${folder}/tokenizer.json`,
    tokenizerConfigPath: `${folder}/tokenizer_config.json`,
  };
}

async function placed(app: App, name: string, path: string): Promise<void> {
  const wanted = app.files[name]?.sha256;
  if (wanted === undefined) throw new Error(`dlqat-app.json does not name ${name}; export again`);
  if ((await fs.exists(path)) && (await fs.hash(path, "sha256")) === wanted) return;
  const inside = Platform.OS === "android" ? fs.asset(`model/${name}`) : `${fs.dirs.MainBundleDir}/model/${name}`;
  await fs.unlink(path).catch(() => undefined); // half a copy of an earlier start, or a damaged file
  await fs.cp(inside, path);
  const found = await fs.hash(path, "sha256");
  if (found === wanted) return;
  await fs.unlink(path);
  throw refused(name, found, wanted);
}
