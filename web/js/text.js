// SPDX-License-Identifier: GPL-3.0-or-later
/** The front end's own words in the four languages of the pack; the server's sentences stay as they are. */

const LANGUAGES = ["en", "zh", "ja", "ko"];

export const TEXTS = {
  // Apply SafeGen
  waiting: ["runs with the next queue", "将在下次运行时显示", "次の実行で表示されます", "다음 실행 때 표시됩니다"],
  green: ["protected", "已保护", "保護中", "보호됨"],
  amber: ["protected, related base", "已保护，基础模型相近", "保護中（近いベース）", "보호됨, 비슷한 베이스"],
  red: ["made for another model", "为其他模型制作", "別のモデル用のパッチ", "다른 모델용 패치"],
  unknown: ["base unknown, try it out", "基础模型未知，请试用", "ベース不明、要確認", "베이스를 알 수 없음, 확인 필요"],
  baked: ["protected, built into the model", "已保护，内置于模型", "保護中（モデルに組込み済み）", "보호됨, 모델에 내장됨"],
  off: ["off", "关闭", "オフ", "꺼짐"],
  unsupported: ["not protected", "未受保护", "保護なし", "보호되지 않음"],
  failed: ["stopped", "已停止", "停止しました", "중지됨"],
  // Apply's facts, by the label the server gives
  patch: ["patch", "补丁", "パッチ", "패치"],
  model: ["model", "模型", "モデル", "모델"],
  family: ["family", "模型系列", "系統", "계열"],
  "base match": ["base match", "基础模型匹配", "ベースの一致", "베이스 일치"],
  coverage: ["coverage", "覆盖", "適用範囲", "적용 범위"],
  rank: ["rank", "秩", "ランク", "랭크"],
  strength: ["strength", "强度", "強さ", "강도"],
  trust: ["trust", "可信度", "信頼", "신뢰"],
  // Check Image
  released: ["released", "已放行", "通過", "통과"],
  censored: ["censored", "已遮盖", "一部を隠しました", "가려짐"],
  withheld: ["withheld", "已拦截", "止めました", "차단됨"],
  unjudged: ["could not be checked", "无法检查", "判定できません", "검사할 수 없음"],
  pictures: ["{n} of {all}", "{all} 张中的 {n} 张", "{all} 枚中 {n} 枚", "{all}장 중 {n}장"],
  nothing: ["Nothing was passed on", "没有图像被传递", "何も渡されませんでした", "아무것도 전달되지 않았습니다"],
  nothingWhy: [
    "The nodes after this one did not run, so nothing was saved.",
    "此节点之后的节点没有运行，因此没有保存任何内容。",
    "このノードの先は実行されず、何も保存されていません。",
    "이 노드 다음의 노드는 실행되지 않아 아무것도 저장되지 않았습니다.",
  ],
  "as it is": ["as it is", "原样", "そのまま", "그대로"],
  sign: ["a sign instead", "以标志代替", "代わりの表示", "표지로 대체"],
  replaced: ["replaced", "已替换", "差し替え", "대체됨"],
  dropped: ["left out", "已去除", "除外", "제외됨"],
  blocked: ["blocked", "已阻止", "ブロック", "차단"],
  // prompts; verdicts and places by the word the server gives
  pass: ["untouched", "未改动", "変更なし", "변경 없음"],
  cleaned: ["cleaned", "已净化", "浄化しました", "정화됨"],
  anchored: ["cleaned, led back", "已净化并引回无害内容", "浄化し、無害な内容へ戻しました", "정화 후 무해한 내용으로 되돌림"],
  refused: ["refused", "已拒绝", "拒否しました", "거부됨"],
  wholePrompt: ["whole prompt", "整条提示词", "プロンプト全体", "프롬프트 전체"],
  end: ["end of text", "文本结尾", "文末", "텍스트 끝"],
  pad: ["padding", "填充", "パディング", "패딩"],
  pooled: ["pooled", "汇总向量", "プール", "풀링"],
  part: ["part {n}:", "第 {n} 段：", "パート {n}：", "{n}번째 부분:"],
  emptyPrompt: ["The prompt is empty.", "提示词为空。", "プロンプトは空です。", "프롬프트가 비어 있습니다."],
  promptFacts: [
    "limit {limit} · strength {strength} · {forwards} more runs of the text encoder",
    "阈值 {limit} · 强度 {strength} · 文本编码器额外运行 {forwards} 次",
    "しきい値 {limit} · 強さ {strength} · テキストエンコーダーの追加実行 {forwards} 回",
    "임계값 {limit} · 강도 {strength} · 텍스트 인코더 추가 실행 {forwards}회",
  ],
  copy: ["Copy report", "复制报告", "レポートをコピー", "보고서 복사"],
  copied: ["Copied ✓", "已复制 ✓", "コピーしました ✓", "복사됨 ✓"],
  copyYourself: [
    "Copy this text with Ctrl+C (⌘C)",
    "请用 Ctrl+C (⌘C) 复制此文本",
    "Ctrl+C (⌘C) でコピーしてください",
    "Ctrl+C(⌘C)로 복사하세요",
  ],
  withPrompt: ["with prompt", "包含提示词", "プロンプトを含む", "프롬프트 포함"],
  withPromptWhy: [
    "Add this graph's prompt texts to the copied report. Pictures are never in it.",
    "把此工作流的提示词加入复制的报告。报告绝不包含图像。",
    "このグラフのプロンプトをコピーするレポートに加えます。画像は含まれません。",
    "이 그래프의 프롬프트를 복사할 보고서에 넣습니다. 이미지는 들어가지 않습니다.",
  ],
  // the A1111 family's page
  refusedRequest: ["no picture was made", "未生成图像", "画像は作られませんでした", "이미지를 만들지 않았습니다"],
  notChecked: ["image check is off", "图像检查已关闭", "画像チェックはオフです", "이미지 검사가 꺼져 있습니다"],
  withPromptHere: [
    "Add this request's prompts to the copied report. Pictures are never in it.",
    "把此请求的提示词加入复制的报告。报告绝不包含图像。",
    "このリクエストのプロンプトをコピーするレポートに加えます。画像は含まれません。",
    "이 요청의 프롬프트를 복사할 보고서에 넣습니다. 이미지는 들어가지 않습니다.",
  ],
  checkOf: ["image check", "图像检查", "画像チェック", "이미지 검사"],
  prompt: ["prompt", "提示词", "プロンプト", "프롬프트"],
  more: ["{n} more prompts", "另有 {n} 条提示词", "ほかに {n} 件のプロンプト", "프롬프트 {n}개 더"],
  recheck: ["Re-check with", "用其他预设复查：", "別のプリセットで再チェック", "다른 프리셋으로 다시 검사"],
  rechecking: ["checking…", "正在检查…", "確認中…", "검사 중…"],
  recheckWhy: [
    "Looks at these pictures again as they were made, without generating. They are kept in memory until the next request and never on disk.",
    "不重新生成，直接再次检查这些原始图像。它们只保存在内存中直到下一次请求，绝不写入磁盘。",
    "生成し直さずに、作られたままの画像をもう一度確認します。画像は次のリクエストまでメモリにだけ置かれ、ディスクには保存されません。",
    "다시 생성하지 않고 만들어진 그대로의 이미지를 다시 확인합니다. 이미지는 다음 요청까지 메모리에만 있고 디스크에는 저장되지 않습니다.",
  ],
  // marks on samplers
  markNone: ["SafeGen: not protected", "SafeGen：未受保护", "SafeGen: 保護なし", "SafeGen: 보호되지 않음"],
  markPartly: ["SafeGen: partly protected", "SafeGen：部分受保护", "SafeGen: 一部のみ保護", "SafeGen: 일부만 보호됨"],
  markNoneWhy: [
    "This node samples from a model that does not pass an active Apply SafeGen. Connect its model input to Apply SafeGen's output.",
    "此节点使用的模型没有经过启用的“应用 SafeGen”。请把它的模型输入连接到“应用 SafeGen”的输出。",
    "このノードのモデルは有効な「SafeGen を適用」を通っていません。モデル入力を「SafeGen を適用」の出力につないでください。",
    "이 노드의 모델은 켜져 있는 'SafeGen 적용' 노드를 거치지 않습니다. 모델 입력을 'SafeGen 적용'의 출력에 연결하세요.",
  ],
  markPartlyWhy: [
    "Some of the models this node works with do not pass an active Apply SafeGen, for instance one side of a merge. Put Apply SafeGen after the merge.",
    "此节点使用的部分模型没有经过启用的“应用 SafeGen”，例如合并的一侧。请把“应用 SafeGen”放在合并之后。",
    "このノードのモデルの一部（マージの片方など）が有効な「SafeGen を適用」を通っていません。マージの後に「SafeGen を適用」を置いてください。",
    "이 노드의 모델 일부(예: 병합의 한쪽)가 켜져 있는 'SafeGen 적용' 노드를 거치지 않습니다. 병합 뒤에 'SafeGen 적용'을 두세요.",
  ],
  setting: [
    "Mark samplers that bypass Apply SafeGen",
    "标记绕过“应用 SafeGen”的采样器",
    "「SafeGen を適用」を通らないサンプラーに印を付ける",
    "'SafeGen 적용'을 거치지 않는 샘플러 표시",
  ],
  settingWhy: [
    "Only in graphs that contain an Apply SafeGen node.",
    "仅用于含有“应用 SafeGen”节点的工作流。",
    "「SafeGen を適用」ノードを含むグラフだけに表示します。",
    "'SafeGen 적용' 노드가 있는 그래프에서만 표시합니다.",
  ],
};

let language = 0;

/** @param {string} [locale] the front end's `Comfy.Locale`, such as "en" or "zh-TW" */
export function speak(locale) {
  language = Math.max(0, LANGUAGES.indexOf(String(locale ?? "en").split("-")[0]));
}

/** The text of a key with `{name}` filled in; a key that has no text is shown as it came. */
export function say(key, values = {}) {
  const text = Object.hasOwn(TEXTS, key) ? TEXTS[key][language] : String(key);
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
