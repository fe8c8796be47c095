/** A Java program whose virtual machine dies: a wild write through sun.misc.Unsafe. */
public class Crash {
    static void crash() throws Exception {
        java.lang.reflect.Field field = sun.misc.Unsafe.class.getDeclaredField("theUnsafe");
        field.setAccessible(true);
        ((sun.misc.Unsafe) field.get(null)).putAddress(0, 0);
    }

    public static void main(String[] arguments) throws Exception {
        System.out.println("ready");
        if (arguments.length == 0 || !arguments[arguments.length - 1].equals("now"))
            System.in.read();
        crash();
    }
}
