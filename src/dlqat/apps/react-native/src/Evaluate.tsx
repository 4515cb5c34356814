// SPDX-License-Identifier: Apache-2.0
// Accuracy on this phone: Documents/tasks.jsonl in, Documents/answers.json out, for dlqat-eval --answers.

import React, { useState } from "react";
import { Pressable, Text, View } from "react-native";
import BlobUtil from "react-native-blob-util";
import { getModel, getSystemName, getSystemVersion } from "react-native-device-info";
import type { Paths } from "./files";
import type { App } from "./shared/model";
import { evaluate } from "./talk";

export function Evaluate({ app, paths }: { app: App; paths: Paths }) {
  const [status, setStatus] = useState("");
  const folder = BlobUtil.fs.dirs.DocumentDir;
  const run = async () => {
    try {
      const tasks = `${folder}/tasks.jsonl`;
      const jsonl = String(await BlobUtil.fs.readFile(tasks, "utf8")), digest = await BlobUtil.fs.hash(tasks, "sha256");
      const device = `${getModel()}, ${getSystemName()} ${getSystemVersion()}`;
      const content = await evaluate(app, paths, jsonl, digest, device, (done, of) => setStatus(`${done} of ${of}`));
      await BlobUtil.fs.writeFile(`${folder}/answers.json`, content, "utf8");
      setStatus(`${folder}/answers.json is written`);
    } catch (error) {
      setStatus((error as Error).message);
    }
  };
  return (
    <View>
      <Text>{`Put the conversations at ${folder}/tasks.jsonl`}</Text>
      <Pressable accessibilityRole="button" onPress={run}>
        <Text>Evaluate</Text>
      </Pressable>
      <Text>{status}</Text>
    </View>
  );
}
