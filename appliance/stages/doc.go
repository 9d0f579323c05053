// Package stages has the parts that every change of all controllers needs which passes through
// stages, whatever it changes:
//
//	var kind = stages.Kind{What: "the encryption key", Command: "kthwd encryption", Prefix: "/kthwd/encryption/"}
//	runner := stages.NewRunner(stages.RunnerConfig{Kind: kind, Name: "c0", …})
//	go func() { runner.Live(ctx); … }()
//	err := runner.Act(ctx, begin)                              // of a verb
//	all, err := stages.Ask(ctx, others, path, question, within, own) // every controller
//
// The right to act is a key in etcd with a lease (Hold): one controller carries the change on, in
// the background, and one that dies leaves it where it is, so that any other one may go on. The
// caller defines the stages and the content of the state in etcd.
package stages
