module.exports = {
  presets: ["module:@react-native/babel-preset"],
  plugins: ["@babel/plugin-transform-export-namespace-from", "react-native-worklets/plugin"], // the package needs both
};
