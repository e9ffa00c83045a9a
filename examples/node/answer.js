// Answers rows of numbers with a hardened graph. Made by: shieldnet harden MODEL --graph onnx -o hardened/
//
//     npm install --ignore-scripts
//     echo '[[0.1, 0.2, 0.3, 0.4]]' | node answer.js hardened/model.onnx
//
// A row that the shield refuses (NaN, Inf) is answered with null: JSON has no NaN.

import { readFileSync } from "node:fs";
import ort from "onnxruntime-node";

const session = await ort.InferenceSession.create(process.argv[2]);
const rows = JSON.parse(readFileSync(0, "utf8"));
const numbers = Float32Array.from(rows.flat(), (number) => number ?? NaN);
const input = new ort.Tensor("float32", numbers, [rows.length, rows[0].length]);

const answers = await session.run({ [session.inputNames[0]]: input });
const { data, dims } = answers[session.outputNames[0]];
const width = dims[1] ?? 1;
const answer = (row) => Array.from(data.subarray(row * width, (row + 1) * width), Number);
console.log(JSON.stringify(rows.map((_, row) => answer(row))));
