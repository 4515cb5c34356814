// SPDX-License-Identifier: Apache-2.0
// The screen: a chat, the model's card, and (five taps on the title) the evaluation.

import React, { useEffect, useRef, useState } from "react";
import { Pressable, SafeAreaView, ScrollView, StyleSheet, Text, TextInput, View } from "react-native";
import { getUsedMemory } from "react-native-device-info";
import { useLLMChatSession } from "react-native-executorch";
import description from "../model/dlqat-app.json";
import { Evaluate } from "./Evaluate";
import { type Paths, prepare } from "./files";
import { call, type Message } from "./shared/chat";
import { type App as Model, card, parse } from "./shared/model";
import { turn } from "./talk";

const app = parse(JSON.stringify(description));

export default function App() {
  const [paths, setPaths] = useState<Paths>();
  const [why, setWhy] = useState("");
  const [chat, setChat] = useState(0); // another key is another session: the package's sessions cannot be emptied
  const [taps, setTaps] = useState(0);
  const [open, setOpen] = useState(false);
  useEffect(() => {
    prepare(app).then(setPaths, (error: Error) => setWhy(error.message));
  }, []);
  return (
    <SafeAreaView style={styles.page}>
      <View style={styles.head}>
        <Pressable accessibilityRole="button" onPress={() => (setTaps(taps + 1), setOpen(!open))}>
          <Text style={styles.title}>{app.name}</Text>
          <Text style={styles.quiet}>{app.integers === "passed" ? "integers verified" : `integers ${app.integers}`}</Text>
        </Pressable>
        <Button title="New chat" onPress={() => setChat(chat + 1)} off={!paths} />
      </View>
      {open && card(app).map(([name, value]) => <Text key={name} style={styles.quiet}>{`${name}: ${value}`}</Text>)}
      {why !== "" && <Text style={styles.bad}>{why}</Text>}
      {paths && (taps >= 5 ? <Evaluate app={app} paths={paths} /> : <Chat key={chat} app={app} paths={paths} />)}
    </SafeAreaView>
  );
}

function Chat({ app, paths }: { app: Model; paths: Paths }) {
  const llm = useLLMChatSession(paths);
  const [messages, setMessages] = useState<Message[]>([]);
  const [text, setText] = useState("");
  const [status, setStatus] = useState("Loading");
  const [busy, setBusy] = useState(false);
  const stopped = useRef(false);
  useEffect(() => setStatus(llm.error ? String(llm.error) : llm.isReady ? "Ready" : "Loading"), [llm.isReady, llm.error]);

  const ask = async () => {
    const { sendMessage, getKVCacheState } = llm, question = text.trim();
    if (!sendMessage || !getKVCacheState || busy || question === "") return;
    const before = [...messages, { role: "user", content: question } as const];
    const show = (content: string) => setMessages([...before, { role: "assistant", content }]);
    setText("");
    setBusy(true);
    stopped.current = false;
    show("");
    try {
      const done = await turn(app, { sendMessage, getKVCacheState }, question, show, () => stopped.current);
      show(done.text);
      const memory = Math.round((await getUsedMemory()) / 1e6);
      const figures = `first token ${done.first.toFixed(2)} s, ${done.rate.toFixed(1)} tokens/s · ${memory} MB`;
      setStatus(done.stop === "end token" ? figures : `${figures} · ended: ${done.stop}`);
    } catch (error) {
      setMessages(messages);
      setStatus((error as Error).message);
    }
    setBusy(false);
  };
  const halt = () => {
    stopped.current = true;
    llm.stop?.();
  };
  return (
    <View style={styles.page}>
      <ScrollView contentContainerStyle={styles.talk}>
        {messages.map((message, at) => (
          <Bubble key={at} message={message} />
        ))}
      </ScrollView>
      <Text style={styles.quiet}>{status}</Text>
      <View style={styles.head}>
        <TextInput style={styles.input} value={text} onChangeText={setText} placeholder="Message" onSubmitEditing={ask} />
        {busy ? <Button title="Stop" onPress={halt} /> : <Button title="Send" onPress={ask} off={!llm.isReady} />}
      </View>
    </View>
  );
}

// A call is shown as what it would do.
function Bubble({ message }: { message: Message }) {
  const found = message.role === "assistant" ? call(message.content) : null;
  const style = [styles.bubble, message.role === "user" ? styles.mine : styles.theirs];
  if (found === null) return <Text style={style}>{message.content}</Text>;
  const lines = Object.entries(found.arguments).map(([name, value]) => `${name}: ${JSON.stringify(value)}`);
  return <Text style={style}>{[found.name, ...lines].join("\n")}</Text>;
}

function Button({ title, onPress, off = false }: { title: string; onPress: () => void; off?: boolean }) {
  return (
    <Pressable accessibilityRole="button" disabled={off} onPress={onPress} style={[styles.button, off && styles.off]}>
      <Text>{title}</Text>
    </Pressable>
  );
}

const styles = StyleSheet.create({
  page: { flex: 1 },
  head: { flexDirection: "row", justifyContent: "space-between", alignItems: "center", gap: 8, padding: 8 },
  title: { fontSize: 17, fontWeight: "600" },
  quiet: { fontSize: 12, color: "#5b6675", paddingHorizontal: 8 },
  bad: { color: "#a4161a", padding: 8 },
  talk: { padding: 8, gap: 8 },
  bubble: { padding: 10, borderRadius: 12, overflow: "hidden", fontSize: 16 },
  mine: { alignSelf: "flex-end", backgroundColor: "#1d4e89", color: "#fff" },
  theirs: { alignSelf: "flex-start", backgroundColor: "#eef1f5" },
  input: { flex: 1, minHeight: 44, borderWidth: 1, borderColor: "#d9dee6", borderRadius: 10, paddingHorizontal: 10 },
  button: { minHeight: 44, justifyContent: "center", paddingHorizontal: 14, borderWidth: 1, borderColor: "#d9dee6", borderRadius: 10 },
  off: { opacity: 0.5 },
});
