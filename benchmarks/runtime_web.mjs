// One model in onnxruntime-web (WebAssembly) in node, for runtimes.py: node runtime_web.mjs MODEL FOLDER
import fs from "node:fs";
import path from "node:path";
import * as ort from "onnxruntime-web";

const [model, folder] = process.argv.slice(2);
try {
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "fatal";
  const session = await ort.InferenceSession.create(fs.readFileSync(model), { executionProviders: ["wasm"] });
  const shapes = JSON.parse(fs.readFileSync(path.join(folder, "shapes.json"), "utf-8"));
  const equal = [];
  for (const [index, { shape }] of shapes.entries()) {
    const images = new Uint8Array(fs.readFileSync(path.join(folder, `images_${index}.bin`)));
    const expected = fs.readFileSync(path.join(folder, `mask_${index}.bin`));
    const outputs = await session.run({ image: new ort.Tensor("uint8", images, shape) });
    const output = outputs[session.outputNames[0]];
    const [count, height, width] = shape;
    const pixels = height * width;
    const classes = output.dims.length === 4 ? output.dims[1] : 0;
    let same = 0;
    for (let place = 0; place < count * pixels; place++) {
      let label = output.data[place];
      if (classes) {
        const start = Math.floor(place / pixels) * classes * pixels + (place % pixels);
        label = 0;
        for (let index = 1; index < classes; index++)
          if (output.data[start + index * pixels] > output.data[start + label * pixels]) label = index;
      }
      same += label === expected[place];
    }
    equal.push(same / (count * pixels));
  }
  console.log(JSON.stringify({ version: ort.env.versions.web ?? "", equal }));
} catch (error) {
  console.log(JSON.stringify({ error: String(error).split("\n").join(" ").slice(-250) }));
}
process.exit(0);
